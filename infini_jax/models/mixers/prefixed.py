"""What a layer does where the memory is summaries: causal attention behind a prefix of them.

The systems themselves, which run all layers over one segment after the other, are in
`models/summary.py`. Here a chunk is one segment: the prefix, its tokens, what is summed up.
"""

from typing import Any

import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer
from infini_jax.models.mixers.local import empty_cache
from infini_jax.models.mixers.transformer_xl import LastSegment, XLStream
from infini_jax.ops.attention import UNSEEN, SegmentCache, attention, put, segment_attention
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import P, on_shards, spec_of


def prefix_length(config: ModelConfig) -> int:
  """A, the summaries in front of a segment."""
  return config.summary_tokens * (config.summary_steps if config.mixer == "autocompressor" else 1)


class Prefixed(Mixer):
  """State of a layer, made by each call: the prefix's un-rotated keys and values."""

  def state(self, lanes: int, layer: int = 0) -> tuple:
    """Nothing: the state is the model's, not a layer's."""
    return ()

  def __call__(self, q_BTHE, k_BTKE, v_BTKE, state, *, reset_BS=None, mask_BT=None, cut=None):
    """One segment, prefix and all; the state is that of its prefix."""
    lanes, _, heads, _ = spec_of(q_BTHE)
    token, lane = P(lanes, None, heads), P(lanes)
    prefix = LastSegment(token, token, lane)
    return on_shards(
      self._read,
      *(q_BTHE, k_BTKE, v_BTKE, mask_BT),
      specs=(token, token, token, lane),
      out_specs=(token, prefix),
    )

  def _read(self, q_BTHE, k_BTKE, v_BTKE, mask_BT):
    A = prefix_length(self.config)
    position = jnp.arange(q_BTHE.shape[1], dtype=jnp.int32)[None]
    turn = lambda x: rotate(x, position, self.config.rope_theta)[:, None]
    out = segment_attention(
      turn(q_BTHE), turn(k_BTKE), v_BTKE[:, None], mask_BT[:, None], kernel="xla"
    )
    return out[:, 0], LastSegment(k_BTKE[:, :A], v_BTKE[:, :A], mask_BT[:, :A])

  def open(self, state: LastSegment, lanes: int, dtype: Any) -> XLStream:
    """An empty segment behind the prefix, with room for what is summed up."""
    c = self.config
    return XLStream(state, empty_cache(c, lanes, dtype, c.segment_length + c.summary_tokens))

  def extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT):
    """A few tokens behind the prefix. It is the model that closes the segment."""
    lanes, _, heads, _ = spec_of(q_BTHE)
    token, lane = P(lanes, None, heads), P(lanes)
    places = XLStream(LastSegment(token, token, lane), SegmentCache(token, token, lane))
    return on_shards(
      self._extend,
      *(q_BTHE, k_BTKE, v_BTKE, stream, mask_BT),
      specs=(token, token, token, places, lane),
      out_specs=(token, places),
    )

  def _extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT):
    (prefix, cache), A = stream, prefix_length(self.config)
    C = cache.k_BNKE.shape[1]
    position_BT = cache.fill_B[:, None] + jnp.arange(q_BTHE.shape[1], dtype=jnp.int32)[None]
    slot_BT = jnp.where(mask_BT, position_BT, C)  # slot C does not exist: padding is dropped
    k_BCKE, v_BCKU = put(cache.k_BNKE, slot_BT, k_BTKE), put(cache.v_BNKU, slot_BT, v_BTKE)
    place = jnp.arange(A + C, dtype=jnp.int32)[None]
    hidden = jnp.concatenate([~prefix.seen_BN, jnp.zeros((len(slot_BT), C), bool)], 1)
    out_BTHU = attention(
      rotate(q_BTHE, A + position_BT, self.config.rope_theta),
      rotate(jnp.concatenate([prefix.k_BNKE, k_BCKE], 1), place, self.config.rope_theta),
      jnp.concatenate([prefix.v_BNKU, v_BCKU], 1),
      A + position_BT,
      jnp.where(hidden, UNSEEN, place),
    )
    fill_B = cache.fill_B + mask_BT.sum(1, dtype=jnp.int32)
    return out_BTHU, XLStream(prefix, SegmentCache(k_BCKE, v_BCKU, fill_B))
