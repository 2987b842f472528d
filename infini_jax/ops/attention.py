"""Softmax attention: inside segments, over a growing cache, and token by token.

One function, `attention`, does all of it: a query sees a key of the same document whose
position is at or before its own. It holds at most a block of query rows of the score matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infini_jax.ops import kernels

UNSEEN = jnp.iinfo(jnp.int32).max  # the position of a key that no query may see
BLOCK_ROWS = 512  # query rows whose scores exist at the same time
MAX_BLOCKS = 16  # the blocks are unrolled: more of them would only cost compile time
SCORE_BYTES = 2**25  # above this, segments go one after the other: a cache holds little more
_MASKED = -1e30


class Scoring(NamedTuple):
  """How products of queries and keys become scores."""

  scale: float = 0.0  # 0: 1/sqrt(E)
  softcap: float = 0.0  # scores s become softcap * tanh(s / softcap); 0: off

  def scale_of(self, E: int) -> float:
    """What products are multiplied by, for heads of this size."""
    return self.scale or E**-0.5

  def __call__(self, product: Array, E: int) -> Array:
    """The scores before any mask."""
    return capped(product * self.scale_of(E), self.softcap)


PLAIN = Scoring()


def capped(x: Array, softcap: float) -> Array:
  """`softcap * tanh(x / softcap)` (Gemma Team, arXiv 2408.00118); 0 caps nothing."""
  return softcap * jnp.tanh(x / softcap) if softcap else x


def attention(
  q_BTHE: Float[Array, "B T H E"],
  k_BCKE: Float[Array, "B C K E"],
  v_BCKU: Float[Array, "B C K U"],
  q_position_BT: Int[Array, "#B T"],
  k_position_BC: Int[Array, "#B C"],
  q_document_BT: Int[Array, "#B T"] | None = None,
  k_document_BC: Int[Array, "#B C"] | None = None,
  *,
  scoring: Scoring = PLAIN,
  reach: int | Int[Array, ""] | None = None,
  aligned: bool = False,
  block_rows: int | None = None,
) -> Float[Array, "B T H U"]:
  """`softmax(q k^T / sqrt(E)) v` (see `Scoring`) over the keys that each query may see.

  Query head `h` uses key/value head `h // G`. Scores and softmax are float32. A query that sees no
  key at all returns a meaningless finite value: mask it.

  Args:
    q_BTHE, k_BCKE, v_BCKU: queries, keys, values; H = K*G.
    q_position_BT, k_position_BC: a key is seen from its own position on; `UNSEEN` hides it.
    q_document_BT, k_document_BC: when given, a key is seen only inside its own document.
    scoring: the scale of the scores, and their softcap.
    reach: positions that a query sees, its own included; None: all.
    aligned: queries and keys are the same tokens in the same order, so that the rows of a block
      need no key after the block.
    block_rows: query rows whose scores exist at the same time; by default `BLOCK_ROWS`.
  """
  B, T, H, E = q_BTHE.shape
  K = k_BCKE.shape[2]
  q_BTKGE = split_heads(q_BTHE, K)

  def rows(q_BTKGE, k_BCKE, v_BCKU, q_position, k_position, q_document, k_document):
    product_BKGTC = jnp.einsum(
      "BTKGE,BCKE->BKGTC", q_BTKGE, k_BCKE, preferred_element_type=jnp.float32
    )
    score_BKGTC = scoring(product_BKGTC, E)
    seen_BTC = k_position[:, None, :] <= q_position[:, :, None]
    if reach is not None:
      seen_BTC &= q_position[:, :, None] - k_position[:, None, :] < reach
    if q_document is not None:
      seen_BTC &= k_document[:, None, :] == q_document[:, :, None]
    score_BKGTC = jnp.where(seen_BTC[:, None, None], score_BKGTC, _MASKED)
    weight_BKGTC = jax.nn.softmax(score_BKGTC, axis=-1).astype(v_BCKU.dtype)
    return jnp.einsum("BKGTC,BCKU->BTKGU", weight_BKGTC, v_BCKU)

  blocks = min(MAX_BLOCKS, -(-T // (block_rows or BLOCK_ROWS)))
  if blocks > 1:
    rows = jax.checkpoint(rows)  # the gradient needs q, k, v alone
  size = -(-T // blocks)
  outputs = []
  for start in range(0, T, size):
    stop = min(start + size, T)
    last = stop if aligned else k_BCKE.shape[1]
    q, k, v = q_BTKGE[:, start:stop], k_BCKE[:, :last], v_BCKU[:, :last]
    positions = (q_position_BT[:, start:stop], k_position_BC[:, :last])
    documents: tuple = (None, None)
    if q_document_BT is not None and k_document_BC is not None:
      documents = (q_document_BT[:, start:stop], k_document_BC[:, :last])
    outputs.append(rows(q, k, v, *positions, *documents))
  out_BTKGU = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
  return out_BTKGU.reshape(B, T, H, -1)


def split_heads(x_BTHE: Float[Array, "B T H E"], K: int) -> Float[Array, "B T K G E"]:
  """Query heads by key/value head."""
  B, T, H, E = x_BTHE.shape
  return x_BTHE.reshape(B, T, K, H // K, E)


def to_segments(x_BT: Any, N: int) -> Array:
  """Tokens (B,T,...) by segment (B,S,N,...); what is missing of the last one is 0."""
  B, T = x_BT.shape[:2]
  S = -(-T // N)
  x_BT = jnp.pad(x_BT, ((0, 0), (0, S * N - T)) + ((0, 0),) * (x_BT.ndim - 2))
  return x_BT.reshape(B, S, N, *x_BT.shape[2:])


def segment_attention(
  q_BSNHE: Float[Array, "B S N H E"],
  k_BSNKE: Float[Array, "B S N K E"],
  v_BSNKU: Float[Array, "B S N K U"],
  mask_BSN: Bool[Array, "B S N"] | None = None,
  *,
  kernel: str = "auto",
  scoring: Scoring = PLAIN,
) -> Float[Array, "B S N H U"]:
  """Causal attention inside each segment; no segment sees another.

  Args:
    q_BSNHE, k_BSNKE, v_BSNKU: the arrays of one device; H = K*G.
    mask_BSN: False for padding, which comes last in a segment.
    kernel: 'reference' holds whole squares of scores; 'xla' blocks of them, and few segments at a
      time; 'splash' is a kernel for TPUs and 'cudnn' one for NVIDIA GPUs; 'auto' takes what
      the platform has and the shapes allow, or else 'xla'.
    scoring: the scale of the scores, and their softcap.

  Raises:
    ValueError: an unknown kernel, or one that cannot do it, and why.
  """
  B, S, N, H, E = q_BSNHE.shape
  sizes = (N, E, v_BSNKU.shape[-1], q_BSNHE.dtype, scoring.softcap)
  kernel = kernels.choose(kernel, kernels.platform(), *sizes)
  if kernel in ("splash", "cudnn"):
    fold = lambda x: x.reshape(B * S, *x.shape[2:])
    qkv = fold(q_BSNHE), fold(k_BSNKE), fold(v_BSNKU)
    mask_BN, scale = None if mask_BSN is None else fold(mask_BSN), scoring.scale_of(E)
    if kernel == "splash":
      out_BNHU = kernels.splash(*qkv, scale, scoring.softcap)
    else:
      out_BNHU = kernels.cudnn(*qkv, mask_BN, scale)
    return out_BNHU.reshape(B, S, *out_BNHU.shape[1:])

  def one(q_BNHE, k_BNKE, v_BNKU, mask_BN):
    position = jnp.arange(N, dtype=jnp.int32)[None]
    k_position = position if mask_BN is None else jnp.where(mask_BN, position, UNSEEN)
    rows = N if kernel == "reference" else None
    qkv, positions = (q_BNHE, k_BNKE, v_BNKU), (position, k_position)
    return attention(*qkv, *positions, scoring=scoring, aligned=True, block_rows=rows)

  scores = 0 if kernel == "reference" else B * S * H * min(N, BLOCK_ROWS) * N
  return each_segment(one, q_BSNHE, k_BSNKE, v_BSNKU, mask_BSN, scores=scores)


def window_attention(
  q_BSNHE: Float[Array, "B S N H E"],
  k_BSWKE: Float[Array, "B S W K E"],
  v_BSWKU: Float[Array, "B S W K U"],
  seen_BSW: Bool[Array, "B S W"],
) -> Float[Array, "B S N H U"]:
  """Each segment's N queries over the W keys of its window; the last N keys are of its own tokens.

  Args:
    q_BSNHE, k_BSWKE, v_BSWKU: the arrays of one device, rotated; H = K*G.
    seen_BSW: False hides a key from all queries. The last N are seen causally.
  """
  B, S, N, H, _ = q_BSNHE.shape
  W = k_BSWKE.shape[2]
  position_W = jnp.arange(W, dtype=jnp.int32)[None]

  def one(q_BNHE, k_BWKE, v_BWKU, seen_BW):
    positions = (position_W[:, W - N :], jnp.where(seen_BW, position_W, UNSEEN))
    return attention(q_BNHE, k_BWKE, v_BWKU, *positions)

  scores = B * S * H * min(N, BLOCK_ROWS) * W
  return each_segment(one, q_BSNHE, k_BSWKE, v_BSWKU, seen_BSW, scores=scores)


def each_segment(one: Callable, *args_BS: Any, scores: int) -> Any:
  """`one(*args_B)` for every segment: side by side where `scores` numbers are few enough, else one
  segment after the other, and each again in the backward pass. Arguments may be trees."""
  if jax.tree.leaves(args_BS)[0].shape[1] == 1 or 4 * scores <= SCORE_BYTES:
    return jax.vmap(one, in_axes=1, out_axes=1)(*args_BS)
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), args_BS)
  _, out_SB = jax.lax.scan(lambda c, x: (c, jax.checkpoint(one)(*x)), None, xs)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out_SB)


class QKV(NamedTuple):
  """Queries, keys and values of tokens."""

  q_BTHE: Array
  k_BTKE: Array
  v_BTKU: Array


class Segment(NamedTuple):
  """One segment of each lane, with room for N tokens: the first `fill_B` of them are there.

  The code that owns the segment decides whether keys are rotated. `x_BNI` are the hidden states
  that keys and values were made of, if that code reads them.
  """

  k_BNKE: Array
  v_BNKU: Array
  fill_B: Array  # int32
  x_BNI: Array | None = None

  def mask(self) -> Bool[Array, "B N"]:
    """True for the slots that hold a token."""
    return jnp.arange(self.k_BNKE.shape[1], dtype=jnp.int32)[None] < self.fill_B[:, None]


def open_positions(segment: Segment, tokens: int) -> Int[Array, "B T"]:
  """The positions of so many more tokens of each lane in its open segment."""
  return segment.fill_B[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None]


def append(
  segment: Segment,
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  mask_BT: Bool[Array, "B T"],
  x_BTI: Float[Array, "B T I"] | None = None,
) -> tuple[Int[Array, "B T"], Segment]:
  """Adds T tokens to each lane's open segment.

  The tokens of `mask_BT` come first in each batch row, and never run past the segment's end.

  Returns:
    The positions of the tokens in the segment, and the segment with them.
  """
  position_BT = open_positions(segment, mask_BT.shape[1])
  N = segment.k_BNKE.shape[1]
  slot_BT = jnp.where(mask_BT, position_BT, N)  # slot N does not exist: padding is dropped
  x_BNI = segment.x_BNI
  return position_BT, Segment(
    put(segment.k_BNKE, slot_BT, k_BTKE),
    put(segment.v_BNKU, slot_BT, v_BTKU),
    segment.fill_B + mask_BT.sum(1, dtype=jnp.int32),
    None if x_BNI is None or x_BTI is None else put(x_BNI, slot_BT, x_BTI),
  )


def close_full(segment: Segment, length: int) -> tuple[Bool[Array, " B"], Segment]:
  """Which lanes have a whole segment of so many tokens, and the segments that follow.

  The keys and values stay: slots from `fill_B` on are not seen.
  """
  full_B = segment.fill_B == length
  return full_B, segment._replace(fill_B=jnp.where(full_B, 0, segment.fill_B))


def inside(
  q_BTHE: Float[Array, "B T H E"],
  position_BT: Int[Array, "#B T"],
  segment: Segment,
  scoring: Scoring = PLAIN,
) -> Float[Array, "B T H U"]:
  """Causal attention of tokens of a segment, at these positions in it. All is rotated already."""
  slots = jnp.arange(segment.k_BNKE.shape[1], dtype=jnp.int32)[None]
  return attention(q_BTHE, segment.k_BNKE, segment.v_BNKU, position_BT, slots, scoring=scoring)


def put(cache_BC: Array, slot_BT: Int[Array, "B T"], x_BT: Array) -> Array:
  """Writes each lane's tokens into its own slots; a slot outside the cache is dropped."""

  def lane(cache_C, slot_T, x_T):
    return cache_C.at[slot_T].set(x_T.astype(cache_C.dtype), mode="drop")

  return jax.vmap(lane)(cache_BC, slot_BT, x_BT)
