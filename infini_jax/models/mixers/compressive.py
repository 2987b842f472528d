"""Compressive Transformers (Rae et al., arXiv 1911.05507): old hidden states are compressed.

A segment sees itself, the hidden states of the segment before, and C compressed ones: each stands
for `compression_rate` old ones in a row, by their mean or by a learned convolution. Hidden states
are remembered without gradient, and projected again to keys and values where they are read.

The convolution has a loss of its own: what attention reads from the compressed segment should be
what it read from the old one. That loss trains nothing else, and no other loss trains it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer, Work, read_flops
from infini_jax.ops.attention import (
  QKV,
  UNSEEN,
  attention,
  each_segment,
  to_segments,
  window_attention,
)
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import axis_names, on_shards, token_axes
from infini_jax.parallel import product, shard, zeros


class Old(NamedTuple):
  """Hidden states of the segment before and compressed ones, the newest last, with the documents
  that they are of (0: nothing), and how well the last ones were compressed."""

  x_BNI: jax.Array
  document_BN: jax.Array
  x_BCI: jax.Array
  document_BC: jax.Array
  current_B: jax.Array  # the number of the lane's document, from 1
  loss_B: jax.Array


class Pairs(NamedTuple):
  """Keys and values of hidden states."""

  k_BTKE: jax.Array
  v_BTKU: jax.Array


class Compressive(Mixer):
  """State: hidden states of one segment and C compressed ones."""

  reads_hidden = True

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = self.config = config
    if c.memory.compression == "conv":
      shape = (c.memory.compression_rate, c.width, c.width)
      noise = jax.random.normal(rngs.params(), shape, jnp.float32)
      scale = (c.memory.compression_rate * c.width) ** -0.5
      self.w_compress_RDI = nnx.Param((scale * noise).astype(c.run.param_dtype))

  def state(self, lanes: int, layer: int = 0) -> Old:
    """The state before any token: empty."""
    c, dtype = self.config, jnp.dtype(self.config.run.compute_dtype)
    sizes = (c.segment_length, c.memory.compressed_memory)
    (x_BNI, of_BN), (x_BCI, of_BC) = (
      (zeros((lanes, n, c.width), "BNI", dtype), zeros((lanes, n), "BN", jnp.int32)) for n in sizes
    )
    number = zeros((lanes,), "B", jnp.int32) + 1
    return Old(x_BNI, of_BN, x_BCI, of_BC, number, zeros((lanes,), "B", jnp.float32))

  def read(self, tokens, position_BT, segment, state, chunk):
    """Attends to the compressed hidden states, the previous segment, and the segment."""
    past = tokens.project(jnp.concatenate([state.x_BCI, state.x_BNI], 1))

    def on_one(q_BTHE, position_BT, segment, past, document_BA, current_B, cut):
      (k_BAKE, v_BAKU), A, N = past, document_BA.shape[1], segment.k_BNKE.shape[1]
      hidden_BA = document_BA != current_B[:, None]
      hidden_BA = hidden_BA if cut is None else hidden_BA | cut
      hidden_BW = jnp.concatenate([hidden_BA, jnp.zeros((len(hidden_BA), N), bool)], 1)
      key_position = jnp.arange(A + N, dtype=jnp.int32)[None]
      return attention(
        rotate(q_BTHE, A + position_BT, self.rope()),
        self._rotate(jnp.concatenate([k_BAKE, segment.k_BNKE], 1)[:, None], 0)[:, 0],
        jnp.concatenate([v_BAKU, segment.v_BNKU], 1),
        A + position_BT,
        jnp.where(hidden_BW, UNSEEN, key_position),
      )

    return on_shards(
      on_one,
      token_axes(tokens.q_BTHE, whole=True),
      "BTHU",
      q_BTHE=tokens.q_BTHE,
      position_BT=position_BT,
      segment=segment,
      past=Pairs(*past),
      document_BA=jnp.concatenate([state.document_BC, state.document_BN], 1),
      current_B=state.current_B,
      cut=chunk.cut,
    )

  def write(self, segment, state):
    """Compresses the previous segment, and replaces it by the segment."""
    C, mask_BN = self.config.memory.compressed_memory, segment.mask()
    short_BCI, of_short_BC = self._compress(state.x_BNI, state.document_BN)
    x_BNI = jax.lax.stop_gradient(segment.x_BNI) * mask_BN[..., None].astype(segment.x_BNI.dtype)
    old_BCI = jnp.concatenate([state.x_BCI, jax.lax.stop_gradient(short_BCI)], 1)
    return Old(
      x_BNI,
      jnp.where(mask_BN, state.current_B[:, None], 0),
      old_BCI[:, -C:],
      jnp.concatenate([state.document_BC, of_short_BC], 1)[:, -C:],
      state.current_B,
      state.loss_B,
    )

  def emptied(self, state):
    """Starts another document: the previous one is no longer seen."""
    return state._replace(current_B=state.current_B + 1)

  def __call__(self, tokens, chunk, state):
    """All segments side by side, and the loss of the convolution."""
    q_BTHE, k_BTKE, v_BTKE, x_BTD, project = tokens
    mask_BT, reset_BS = chunk.mask_BT, chunk.reset_BS
    c = self.config
    (B, T), N, C = q_BTHE.shape[:2], c.segment_length, c.memory.compressed_memory
    S = -(-T // N)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, S * N - T)) + ((0, 0),) * (x.ndim - 2))
    mask_BT = jnp.ones((B, T), bool) if mask_BT is None else mask_BT
    reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
    mask_BT, reset_BS, x_BTD = pad(shard(mask_BT, "B_")), shard(reset_BS, "B_"), shard(x_BTD, "B__")
    document_BS = state.current_B[:, None] + jnp.cumsum(reset_BS, axis=1, dtype=jnp.int32)
    document_BT = jnp.where(mask_BT, jnp.repeat(document_BS, N, axis=1), 0)

    # Before segment s begins: the segment before it, and what that becomes when it grows old.
    x_BTI = jax.lax.stop_gradient(pad(x_BTD)) * mask_BT[..., None].astype(x_BTD.dtype)
    line_BTI = jnp.concatenate([state.x_BNI, x_BTI], 1)
    of_BT = jnp.concatenate([state.document_BN, document_BT], 1)
    before_BTI, of_before_BT = line_BTI[:, :-N], of_BT[:, :-N]
    short_BTI, of_short_BT = self._compress(before_BTI, of_before_BT)
    old_BCI = jnp.concatenate([state.x_BCI, jax.lax.stop_gradient(short_BTI)], 1)
    of_old_BC = jnp.concatenate([state.document_BC, of_short_BT], 1)

    axes = token_axes(q_BTHE, whole=True)
    of_tokens = {"mask_BT": mask_BT, "document_BS": document_BS, "of_before_BT": of_before_BT}
    out_BTHU = on_shards(
      self._read,
      axes,
      "BTHU",
      own=QKV(q_BTHE, k_BTKE, v_BTKE),
      past=Pairs(*project(jnp.concatenate([before_BTI, old_BCI], 1))),
      of_old_BC=of_old_BC,
      cut=chunk.cut,
      **of_tokens,
    )
    loss_B = jnp.zeros_like(state.loss_B)
    if c.memory.compression == "conv":
      loss_B = on_shards(
        lambda **arrays: jax.lax.pmean(self._reconstruction(**arrays), axis_names(axes["H"])),
        axes,
        "B",
        follow=True,
        whole=QKV(*jax.lax.stop_gradient((q_BTHE, *project(before_BTI)))),
        short=Pairs(*project(short_BTI, frozen=True)),
        of_short_BT=of_short_BT,
        **of_tokens,
      )
    state = Old(
      line_BTI[:, -N:],
      of_BT[:, -N:],
      old_BCI[:, -C:],
      of_old_BC[:, -C:],
      document_BS[:, -1],
      loss_B,
    )
    return out_BTHU, state

  def _compress(self, x_BTI, of_BT):
    """Every `compression_rate` hidden states in a row to one, of the first one's document."""
    B, T, I = x_BTI.shape
    rate = self.config.memory.compression_rate
    x_BTRI = x_BTI.reshape(B, T // rate, rate, I)
    of_BC = of_BT.reshape(B, T // rate, rate)[..., 0]
    if self.config.memory.compression == "conv":
      short_BTI = product("BTRD,RDI->BTI", x_BTRI, self.w_compress_RDI[...])
      return shard(short_BTI, "B__"), of_BC
    return x_BTRI.mean(2), of_BC

  def _read(self, own, past, mask_BT, document_BS, of_before_BT, of_old_BC, cut):
    """On one device: segment s sees its window of the compressed states, the one before, itself."""
    c, (q, k, v), (k_old, v_old) = self.config, own, past
    N, C, S, T = c.segment_length, c.memory.compressed_memory, document_BS.shape[1], q.shape[1]
    new = N // c.memory.compression_rate  # each segment moves the window by so many
    window = lambda x: jnp.stack([x[:, s * new : s * new + C] for s in range(S)], 1)

    def join(old, own):
      parts = window(old[:, S * N :]), to_segments(old[:, : S * N], N), to_segments(own, N)
      return jnp.concatenate(parts, 2)

    of_BSW = jnp.concatenate([window(of_old_BC), to_segments(of_before_BT, N)], 2)
    seen_BSW = of_BSW == document_BS[..., None]
    if cut is not None:
      seen_BSW &= ~cut
    seen_BSW = jnp.concatenate([seen_BSW, to_segments(mask_BT, N)], 2)
    q_BSNHE, k_BSWKE = self._rotate(to_segments(q, N), C + N), self._rotate(join(k_old, k), 0)
    out_BSNHU = window_attention(q_BSNHE, k_BSWKE, join(v_old, v), seen_BSW)
    return out_BSNHU.reshape(len(q), S * N, *out_BSNHU.shape[3:])[:, :T]

  def _reconstruction(self, whole, short, mask_BT, document_BS, of_before_BT, of_short_BT):
    """On one device: the mean squared difference between what queries read, by content alone,
    from the previous segment and from its compressed form."""
    N, S = self.config.segment_length, document_BS.shape[1]

    def one(whole, short, mask_BN, document_B, of_BN, of_short_BN):
      at_BN = jnp.zeros((1, N), jnp.int32)
      key_position = lambda of: jnp.where(of == document_B[:, None], 0, UNSEEN)
      q, k, v = whole
      read = attention(q, k, v, at_BN, key_position(of_BN))
      again = attention(q, short.k_BTKE, short.v_BTKU, at_BN, key_position(of_short_BN))
      error_BN = ((read - again).astype(jnp.float32) ** 2).mean((2, 3))
      known_B = (of_BN == document_B[:, None]).any(1)
      return jnp.where(mask_BN & known_B[:, None], error_BN, 0.0).mean(1)

    n = N // self.config.memory.compression_rate
    scores = whole.q_BTHE.shape[0] * S * whole.q_BTHE.shape[2] * N * N
    whole = jax.tree.map(lambda x: to_segments(x, N), whole)
    short = jax.tree.map(lambda x: to_segments(x, n), short)
    of_tokens = to_segments(mask_BT, N), document_BS, to_segments(of_before_BT, N)
    of_short_BSN = to_segments(of_short_BT, n)
    return each_segment(one, whole, short, *of_tokens, of_short_BSN, scores=scores).mean(1)

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Attention to the previous segment and the compressed hidden states, their projections, the
    compression."""
    rate, seen = c.memory.compression_rate, c.segment_length + c.memory.compressed_memory
    again = 4 * c.width * c.kv_heads * c.head_dim * (1 + rate) // rate
    convolution = 2 * c.width**2 if c.memory.compression == "conv" else 0
    return c.layers * (read_flops(c) * seen + again + convolution)

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """Hidden states of one segment and compressed ones."""
    old = c.segment_length + c.memory.compressed_memory
    return "L D (N + C)", c.layers * c.width * old

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """Keys and values of the old hidden states, for each segment."""
    N, pair = c.segment_length, 2 * s.kv_heads * c.head_dim * s.compute
    old = N + c.memory.compressed_memory
    return Work(s.tokens, N + old, s.lanes * s.segments * old * pair)

  @staticmethod
  def auxiliary(state: Old) -> jax.Array:
    """The loss of the convolution, mean over layers and lanes."""
    return state.loss_B.mean()

  def _rotate(self, x_BSWHE, first: int):
    """Rotated, the first of each segment at this position."""
    B, S, W = x_BSWHE.shape[:3]
    position = first + jnp.arange(W, dtype=jnp.int32)[None]
    rotated = rotate(x_BSWHE.reshape(B * S, W, *x_BSWHE.shape[3:]), position, self.rope())
    return rotated.reshape(x_BSWHE.shape)
