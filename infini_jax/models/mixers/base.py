"""The interface of every memory system, between a layer and its state.

A system is defined by two functions: `read` is what tokens of a segment see, `write` is what the
state becomes when the segment is closed. `Mixer` makes all calls out of these two: whole chunks,
one segment after the other, and the extension of an open segment by a few tokens. A system
overrides a call where it has a faster form of the same computation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.ops.attention import Scoring, Segment, append, close_full, to_segments
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.rotary import Frequencies, Rope, frequencies
from infini_jax.ops.shards import on_shards, token_axes
from infini_jax.parallel import shard, zeros


class Tokens(NamedTuple):
  """The projections of the tokens of a layer, un-rotated, and the hidden states before them."""

  q_BTHE: jax.Array
  k_BTKE: jax.Array
  v_BTKE: jax.Array
  x_BTD: jax.Array
  project: Callable  # keys and values of other hidden states; `frozen`: without gradient to weights

  def projections(self) -> dict[str, jax.Array]:
    """Queries, keys and values by name, for `on_shards`."""
    return {"q_BTHE": self.q_BTHE, "k_BTKE": self.k_BTKE, "v_BTKE": self.v_BTKE}


class Chunk(NamedTuple):
  """Where tokens are in their documents. A field that is None has no effect.

  Attributes:
    reset_BS: True where a segment starts a document.
    mask_BT: False for padding.
    times_BT: how many times the memory counts each token; only a sum over the tokens can do it.
    cut: a scalar, True: nothing of the state is read. The ablation of this layer's reads.
    windowed: a scalar, where every so-many-th layer is global (`family.global_every`): True in the
      other layers, which have the window. The config refuses systems that cannot do it.
    empty: a scalar, True: every segment of this layer starts a document.
    extends: the tokens continue the open segment; otherwise they are whole segments.
  """

  reset_BS: jax.Array | None = None
  mask_BT: jax.Array | None = None
  times_BT: jax.Array | None = None
  cut: jax.Array | None = None
  windowed: jax.Array | None = None
  empty: jax.Array | None = None
  extends: bool = False

  def of_layer(self, flags: tuple[Any, Any, Any]) -> "Chunk":
    """The chunk with the scalars `cut`, `windowed` and `empty` of one layer."""
    cut, windowed, empty = flags
    reset_BS = self.reset_BS if empty is None else self.reset_BS | empty
    return self._replace(reset_BS=reset_BS, cut=cut, windowed=windowed, empty=empty)


class Stream(NamedTuple):
  """The state after whole segments, and the open segment."""

  state: Any
  cache: Segment


class Work(NamedTuple):
  """The work of a layer with this memory on one device.

  Attributes:
    rows: the tokens that go through the layer at a time.
    keys: the keys that each of them sees.
    bytes: more bytes that the gradient of the layer needs.
    row_bytes: more bytes of each token among the activations.
    state: bytes of the state, which are kept for the gradient.
  """

  rows: float
  keys: float
  bytes: float = 0.0
  row_bytes: float = 0.0
  state: float = 0.0


GATE = "beta_H"  # the parameter of the gates, in every system that has them


def pair_size(c: ModelConfig) -> int:
  """The numbers in the keys and values of one token."""
  return 2 * c.kv_heads * c.head_dim


def read_flops(c: ModelConfig) -> int:
  """The operations of one query with one key and value, in all heads."""
  return 4 * c.heads * c.head_dim


class Mixer(nnx.Module):
  """How the tokens of a layer attend to earlier tokens, and the state of a layer.

  However the tokens are cut into calls, the outputs are the same. Resetting every segment is the
  ablation that holds the memory empty.
  """

  reads_hidden = False  # whether `read` or `write` uses the hidden states of the segment
  of_model: ClassVar[tuple[str, ...]] = ()  # its parameters that the model has, and not a layer
  # By parameter, its tensor in `convert/torch_model`, and whether that is the transpose, (out, in).
  tensors: ClassVar[dict[str, tuple[str, bool]]] = {}

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config

  def groups(self) -> tuple[tuple[int, int], ...]:
    """Ranges of layers, (first, after the last), with states of one kind; each is one scan."""
    return ((0, self.config.layers),)

  def state(self, lanes: int, layer: int = 0) -> Any:
    """The state of a layer (counted from 0) before any token; without leaves: there is no state."""
    raise NotImplementedError

  def read(
    self, tokens: Tokens, position_BT: jax.Array, segment: Segment, state: Any, chunk: Chunk
  ) -> jax.Array:
    """The output for tokens of a segment, (B,T,H,E), from the segment up to each and the state.

    Args:
      tokens: their queries; their keys and values are in the segment already.
      position_BT: their positions in the segment.
      segment: the segment, un-rotated.
      state: after the segment before.
      chunk: `cut` and `windowed` are read.
    """
    raise NotImplementedError

  def write(self, segment: Segment, state: Any) -> Any:
    """The state after a segment, which may be incomplete, from the state before it."""
    raise NotImplementedError

  def emptied(self, state: Any) -> Any:
    """The state of lanes that start a document."""
    return jax.tree.map(jnp.zeros_like, state)

  def __call__(self, tokens: Tokens, chunk: Chunk, state: Any) -> tuple[jax.Array, Any]:
    """A chunk of whole segments, one after the other: the output (B,T,H,E), and the state after."""
    B, T = tokens.q_BTHE.shape[:2]
    N = self.config.segment_length
    mask_BT = jnp.ones((B, T), bool) if chunk.mask_BT is None else chunk.mask_BT
    reset_BS = jnp.zeros((B, -(-T // N)), bool) if chunk.reset_BS is None else chunk.reset_BS
    position_BN = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32)[None], (B, N))
    # They go one after the other, so each device gets all segments of its lanes.
    letters = ("B_H_", "B_K_", "B_K_", "B__")
    whole = (*(shard(x, named) for x, named in zip(tokens[:4], letters, strict=True)),)
    mask_BT, reset_BS = shard(mask_BT, "B_"), shard(reset_BS, "B_")

    def segment(state, xs):
      (q, k, v, x), mask_BN, reset_B = xs
      state = where_lane(reset_B, self.emptied(state), state)
      own = Segment(k, v, mask_BN.sum(1, dtype=jnp.int32), x if self.reads_hidden else None)
      out_BNHE = self.read(Tokens(q, k, v, x, tokens.project), position_BN, own, state, chunk)
      return self.write(own, state), out_BNHE

    split = lambda x: jnp.moveaxis(to_segments(x, N), 1, 0)
    xs = jax.tree.map(split, (whole, mask_BT))
    state, out_SBNHE = jax.lax.scan(segment, state, (*xs, reset_BS.T))
    out_BSNHE = jnp.moveaxis(out_SBNHE, 0, 1)
    return out_BSNHE.reshape(B, -1, *out_BSNHE.shape[3:])[:, :T], state

  def open(self, state: Any, lanes: int, dtype: Any) -> Any:
    """Converts the state after whole segments to the stream of an open segment."""
    hidden = self.config.width if self.reads_hidden else 0
    return Stream(state, empty_segment(self.config, lanes, dtype, hidden=hidden))

  @staticmethod
  def close(stream: Any) -> Any:
    """The reverse of `open`, if no lane has a token in its open segment; layers may be in front."""
    return stream.state

  def extend(self, tokens: Tokens, chunk: Chunk, stream: Any) -> tuple[jax.Array, Any]:
    """A few tokens of the open segment: the output, and the stream after them.

    The tokens of `chunk.mask_BT` come first in each batch row, and never run past the segment's
    end. A segment that is full is closed.
    """
    out_BTHE, (state, cache) = self.append(tokens, chunk, stream)
    full_B, after = close_full(cache, self.config.segment_length)
    closed = lambda state: where_lane(full_B, self.write(cache, state), state)
    state = jax.lax.cond(full_B.any(), closed, lambda state: state, state)
    return out_BTHE, Stream(state, after)

  def append(self, tokens: Tokens, chunk: Chunk, stream: Stream) -> tuple[jax.Array, Stream]:
    """As `extend`, but a full segment stays open."""
    state, cache = stream
    position_BT, cache = on_shards(
      append,
      token_axes(tokens.q_BTHE, whole=True),
      ("BT", cache),
      segment=cache,
      k_BTKE=tokens.k_BTKE,
      v_BTKU=tokens.v_BTKE,
      mask_BT=chunk.mask_BT,
      x_BTI=tokens.x_BTD if self.reads_hidden else None,
    )
    return self.read(tokens, position_BT, cache, state, chunk), Stream(state, cache)

  def rope(self, windowed: jax.Array | None = None) -> Rope:
    """Rotates the queries and keys of this layer, by `ops.rotary.rotate`."""
    c = self.config
    if windowed is None and c.family.window_theta:
      return c.family.window_theta
    if not (c.family.window_theta or c.family.rope_scaling or c.family.global_nope):
      return c.family.rope_theta
    scaled = frequencies(c.head_dim, c.family.rope_theta, c.family.rope_scaling)
    if windowed is None or not (c.family.window_theta or c.family.global_nope):
      return scaled
    near = frequencies(c.head_dim, c.family.window_theta) if c.family.window_theta else scaled
    far = Frequencies(jnp.zeros_like(scaled.frequency_E)) if c.family.global_nope else scaled
    return jax.tree.map(partial(jnp.where, windowed), near, far)

  def scoring(self) -> Scoring:
    """The scale and the softcap of this layer's scores."""
    return Scoring(self.config.family.query_scale, self.config.family.attention_softcap)

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Floating-point operations of one token forward, all layers, without those of its segment.

    Args:
      c: the model.
      layer: operations of one token through the weights of a layer.
    """
    return 0.0

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """The numbers in the state of one lane: Table 1's formula (arXiv 2404.07143), and its value.

    K is the paper's H: the heads that have keys and values.
    """
    return "0", 0

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """The work of one layer on one device, with this memory.

    Args:
      c: the model.
      s: the sizes on one device: `plan.per_chip.PerChip`.
    """
    return Work(s.tokens, c.segment_length)

  @staticmethod
  def auxiliary(state: Any) -> jax.Array | float:
    """An additional loss of the mixer, from the state after a chunk; mean over layers and lanes."""
    return 0.0

  @staticmethod
  def reserve(state: Any, tokens: int) -> Any:
    """Makes room for more tokens in a state that grows. `state` has the layers in front."""
    return state


def empty_segment(
  config: ModelConfig, lanes: int, dtype: Any, tokens: int | None = None, hidden: int = 0
) -> Segment:
  """An open segment without tokens.

  Args:
    config: the model.
    lanes: B.
    dtype: of keys and values.
    tokens: the room in it; by default N.
    hidden: the width of the hidden states that it keeps; 0: none.
  """
  N = tokens or config.segment_length
  shape = (lanes, N, config.kv_heads, config.head_dim)
  pairs = zeros(shape, "BNKE", dtype), zeros(shape, "BNKU", dtype)
  x_BNI = zeros((lanes, N, hidden), "BNI", dtype) if hidden else None
  return Segment(*pairs, zeros((lanes,), "B", jnp.int32), x_BNI)
