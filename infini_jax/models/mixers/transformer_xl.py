"""Transformer-XL (Dai et al., arXiv 1901.02860): a segment sees the one before it, too.

The keys and values of the last segment are kept, without gradient. They are kept un-rotated, and
turned anew where they are read: what a query sees depends on the distance alone, which is what the
relative encoding of the paper is for. Rotary positions take its place here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer, Work, pair_size, read_flops
from infini_jax.models.mixers.local import empty_cache
from infini_jax.ops.attention import (
  UNSEEN,
  SegmentCache,
  attention,
  close_full,
  open_slots,
  put,
  to_segments,
  window_attention,
)
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import P, on_shards, spec_of
from infini_jax.parallel import zeros


class LastSegment(NamedTuple):
  """Un-rotated keys and values of the segment before, and which of them are tokens."""

  k_BNKE: jax.Array
  v_BNKU: jax.Array
  seen_BN: jax.Array  # bool


class XLStream(NamedTuple):
  """The segment before, and the open one (un-rotated, too)."""

  last: LastSegment
  cache: SegmentCache


class TransformerXL(Mixer):
  """State: the keys and values of one segment."""

  def state(self, lanes: int, layer: int = 0) -> LastSegment:
    """Nothing was read before."""
    c = self.config
    shape = (lanes, c.segment_length, c.kv_heads, c.head_dim)
    dtype = jnp.dtype(c.run.compute_dtype)
    return LastSegment(
      zeros(shape, "BNKE", dtype), zeros(shape, "BNKU", dtype), zeros(shape[:2], "BN", bool)
    )

  def __call__(self, q_BTHE, k_BTKE, v_BTKE, state, *, reset_BS=None, mask_BT=None, cut=None):
    """A chunk of whole segments, all at once: each sees itself and the one before."""
    lanes, _, heads, _ = spec_of(q_BTHE)
    token, lane = P(lanes, None, heads), P(lanes)
    last = LastSegment(token, token, lane)
    return on_shards(
      self._read,
      *(q_BTHE, k_BTKE, v_BTKE, state, reset_BS, mask_BT, cut),
      specs=(token, token, token, last, lane, lane, P()),
      out_specs=(token, last),
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

    turn = jax.vmap(self._turn, (1, None), 1)
    k_BSCKE = turn(jnp.concatenate([before.k_BNKE, own.k_BNKE], 2), 0)
    q_BSNHE = turn(to_segments(q_BTHE, N), N)
    v_BSCKU = jnp.concatenate([before.v_BNKU, own.v_BNKU], 2)
    seen_BSC = jnp.concatenate([seen_BSN, own.seen_BN], 2)
    out_BSNHU = window_attention(q_BSNHE, k_BSCKE, v_BSCKU, seen_BSC)
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

  def open(self, state: LastSegment, lanes: int, dtype: Any) -> XLStream:
    """An empty segment after the last one."""
    return XLStream(state, empty_cache(self.config, lanes, dtype))

  def close(self, stream: XLStream) -> LastSegment:
    """The last segment."""
    return stream.last

  def extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT):
    """A few tokens of the open segment; when it is full, it becomes the last."""
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
    out_BTHU, (last, cache) = self._append(q_BTHE, k_BTKE, v_BTKE, stream, mask_BT)
    closed_B, cache = close_full(cache, self.config.segment_length)
    full = LastSegment(cache.k_BNKE, cache.v_BNKU, jnp.ones_like(last.seen_BN))
    return out_BTHU, XLStream(where_lane(closed_B, full, last), cache)

  def _append(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT):
    """What the tokens see, and the stream with them in the open segment."""
    last, cache = stream
    A, C = last.k_BNKE.shape[1], cache.k_BNKE.shape[1]
    position_BT, slot_BT = open_slots(cache, mask_BT)
    k_BCKE, v_BCKU = put(cache.k_BNKE, slot_BT, k_BTKE), put(cache.v_BNKU, slot_BT, v_BTKE)
    place = jnp.arange(A + C, dtype=jnp.int32)[None]
    hidden = jnp.concatenate([~last.seen_BN, jnp.zeros((len(slot_BT), C), bool)], 1)
    out_BTHU = attention(
      rotate(q_BTHE, A + position_BT, self.rope()),
      self._turn(jnp.concatenate([last.k_BNKE, k_BCKE], 1), 0),
      jnp.concatenate([last.v_BNKU, v_BCKU], 1),
      A + position_BT,
      jnp.where(hidden, UNSEEN, place),
    )
    fill_B = cache.fill_B + mask_BT.sum(1, dtype=jnp.int32)
    return out_BTHU, XLStream(last, SegmentCache(k_BCKE, v_BCKU, fill_B))

  def _turn(self, x_BCHE, first: int):
    """Rotated, the first of them at this position."""
    position = first + jnp.arange(x_BCHE.shape[1], dtype=jnp.int32)[None]
    return rotate(x_BCHE, position, self.rope())
