"""Causal attention inside each segment and nothing else: Infini-attention with its memory off."""

from typing import Any

import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer
from infini_jax.ops.attention import (
  SegmentCache,
  close_full,
  extend_segment,
  open_positions,
  segment_attention,
  to_segments,
)
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import P, on_shards, spec_of
from infini_jax.parallel import zeros


class Local(Mixer):
  """State: nothing; while a segment is open, its keys and values."""

  def state(self, lanes: int, layer: int = 0) -> tuple:
    """Nothing is carried from segment to segment."""
    return ()

  def __call__(
    self, q_BTHE, k_BTKE, v_BTKE, state, *, reset_BS=None, mask_BT=None, cut=None, windowed=None
  ):
    """A chunk of whole segments. There is nothing to cut."""
    lanes, over, heads, _ = spec_of(q_BTHE)
    token = P(lanes, over, heads)
    out_BTHE = on_shards(
      self._segments,
      *(q_BTHE, k_BTKE, v_BTKE, mask_BT, windowed),
      specs=(token, token, token, P(lanes, over), P()),
      out_specs=token,
    )
    return out_BTHE, state

  def _segments(self, q_BTHE, k_BTKE, v_BTKE, mask_BT, windowed):
    B, T = q_BTHE.shape[:2]
    N, rope = self.config.segment_length, self.rope(windowed)
    position = jnp.arange(T, dtype=jnp.int32)[None] % N

    turn = lambda x: to_segments(rotate(x, position, rope), N)
    mask_BSN = None if mask_BT is None else to_segments(mask_BT, N)
    out_BSNHU = segment_attention(
      turn(q_BTHE),
      turn(k_BTKE),
      to_segments(v_BTKE, N),
      mask_BSN,
      kernel=self.config.run.attention,
      scoring=self.scoring(),
    )
    return out_BSNHU.reshape(B, -1, *out_BSNHU.shape[3:])[:, :T]

  def open(self, state: tuple, lanes: int, dtype: Any) -> SegmentCache:
    """An empty cache for the segment that begins."""
    return empty_cache(self.config, lanes, dtype)

  def close(self, stream: SegmentCache) -> tuple:
    """Nothing."""
    return ()

  def extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT, *, windowed=None):
    """A few tokens of the open segment."""
    lanes, _, heads, _ = spec_of(q_BTHE)
    token = P(lanes, None, heads)
    cache = SegmentCache(token, token, P(lanes))
    return on_shards(
      self._extend,
      *(q_BTHE, k_BTKE, v_BTKE, stream, mask_BT, windowed),
      specs=(token, token, token, cache, P(lanes), P()),
      out_specs=(token, cache),
    )

  def _extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT, windowed):
    rope, position = self.rope(windowed), open_positions(stream, q_BTHE.shape[1])
    turn = lambda x: rotate(x, position, rope)
    qkv = turn(q_BTHE), turn(k_BTKE), v_BTKE
    out, cache = extend_segment(*qkv, stream, mask_BT, self.scoring())
    return out, close_full(cache, self.config.segment_length)[1]


def empty_cache(
  config: ModelConfig, lanes: int, dtype: Any, tokens: int | None = None
) -> SegmentCache:
  """An open segment that holds no token yet, with room for N, or for so many."""
  shape = (lanes, tokens or config.segment_length, config.kv_heads, config.head_dim)
  return SegmentCache(
    zeros(shape, "BNKE", dtype), zeros(shape, "BNKU", dtype), zeros((lanes,), "B", jnp.int32)
  )
