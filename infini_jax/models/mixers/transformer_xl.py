"""Transformer-XL (Dai et al., arXiv 1901.02860): a segment also sees the one before it.

The keys and values of the last segment are kept, without gradient. They are kept un-rotated, and
rotated again where they are read. So what a query sees depends on the distance alone. The relative
encoding of the paper has this purpose; rotary positions replace it here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer, Work, pair_size, read_flops
from infini_jax.ops.attention import UNSEEN, attention, to_segments, window_attention
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import on_shards, token_axes
from infini_jax.parallel import zeros


class LastSegment(NamedTuple):
  """Un-rotated keys and values of the segment before, and which of them are tokens."""

  k_BNKE: jax.Array
  v_BNKU: jax.Array
  seen_BN: jax.Array  # bool


class TransformerXL(Mixer):
  """State: the keys and values of one segment."""

  def state(self, lanes: int, layer: int = 0) -> LastSegment:
    """The state before any token: empty."""
    c = self.config
    shape = (lanes, c.segment_length, c.kv_heads, c.head_dim)
    dtype = jnp.dtype(c.run.compute_dtype)
    return LastSegment(
      zeros(shape, "BNKE", dtype), zeros(shape, "BNKU", dtype), zeros(shape[:2], "BN", bool)
    )

  def read(self, tokens, position_BT, segment, state, chunk):
    """The segment before, and the segment."""
    return on_shards(
      self._see,
      token_axes(tokens.q_BTHE, whole=True),
      "BTHU",
      q_BTHE=tokens.q_BTHE,
      position_BT=position_BT,
      segment=segment,
      last=state,
      cut=chunk.cut,
    )

  def write(self, segment, state):
    """The segment, without gradient."""
    return jax.lax.stop_gradient(LastSegment(segment.k_BNKE, segment.v_BNKU, segment.mask()))

  def _see(self, q_BTHE, position_BT, segment, last, cut):
    """`read` on one device."""
    B, A = last.seen_BN.shape
    N = segment.k_BNKE.shape[1]
    key_position = jnp.arange(A + N, dtype=jnp.int32)[None]
    hidden_BA = ~last.seen_BN if cut is None else ~last.seen_BN | cut
    hidden_BW = jnp.concatenate([hidden_BA, jnp.zeros((B, N), bool)], 1)
    return attention(
      rotate(q_BTHE, A + position_BT, self.rope()),
      self._rotate(jnp.concatenate([last.k_BNKE, segment.k_BNKE], 1), 0),
      jnp.concatenate([last.v_BNKU, segment.v_BNKU], 1),
      A + position_BT,
      jnp.where(hidden_BW, UNSEEN, key_position),
    )

  def __call__(self, tokens, chunk, state):
    """All segments in parallel: each sees itself and the previous one."""
    return on_shards(
      self._read,
      token_axes(tokens.q_BTHE, whole=True),
      ("BTHU", state),
      **tokens.projections(),
      state=state,
      reset_BS=chunk.reset_BS,
      mask_BT=chunk.mask_BT,
      cut=chunk.cut,
    )

  def _read(self, q_BTHE, k_BTKE, v_BTKE, state, reset_BS, mask_BT, cut):
    B, T = q_BTHE.shape[:2]
    N = self.config.segment_length
    mask_BT = jnp.ones((B, T), bool) if mask_BT is None else mask_BT
    own = LastSegment(*(to_segments(x, N) for x in (k_BTKE, v_BTKE, mask_BT)))
    before = jax.tree.map(lambda x, y: jnp.concatenate([x[:, None], y[:, :-1]], 1), state, own)
    before = jax.lax.stop_gradient(before)
    seen_BSN = before.seen_BN
    for blind in (reset_BS, cut):
      if blind is not None:
        seen_BSN &= ~blind.reshape(*blind.shape, *(1,) * (3 - blind.ndim))

    rotate = jax.vmap(self._rotate, (1, None), 1)
    k_BSWKE = rotate(jnp.concatenate([before.k_BNKE, own.k_BNKE], 2), 0)
    q_BSNHE = rotate(to_segments(q_BTHE, N), N)
    v_BSWKU = jnp.concatenate([before.v_BNKU, own.v_BNKU], 2)
    seen_BSW = jnp.concatenate([seen_BSN, own.seen_BN], 2)
    out_BSNHU = window_attention(q_BSNHE, k_BSWKE, v_BSWKU, seen_BSW)
    out_BTHU = out_BSNHU.reshape(B, -1, *out_BSNHU.shape[3:])[:, :T]
    return out_BTHU, jax.lax.stop_gradient(jax.tree.map(lambda x: x[:, -1], own))

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """The segment before is seen whole."""
    return c.layers * read_flops(c) * c.segment_length

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """Keys and values of one segment."""
    return "2 L K E N", c.layers * pair_size(c) * c.segment_length

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """Two segments side by side."""
    pair = 2 * s.kv_heads * c.head_dim * s.compute
    return Work(s.tokens, 2 * c.segment_length, 2 * s.tokens * pair)

  def _rotate(self, x_BWHE, first: int):
    """Rotated, the first of them at this position."""
    position = first + jnp.arange(x_BWHE.shape[1], dtype=jnp.int32)[None]
    return rotate(x_BWHE, position, self.rope())
