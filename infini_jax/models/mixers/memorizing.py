"""Memorizing Transformers (Wu et al., arXiv 2203.08913): a store of keys, and the nearest of them.

All layers are Transformer-XL's. Chosen ones also keep the newest M keys and values of the document,
un-rotated and without gradient; every query attends to the few that are most like it, and a
gate per head mixes that with the local output: `g near + (1 - g) local`, g = sigmoid(beta).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Work, pair_size, read_flops
from infini_jax.models.mixers.transformer_xl import LastSegment, TransformerXL, XLStream
from infini_jax.ops import gate_values
from infini_jax.ops.attention import SegmentCache, to_segments
from infini_jax.ops.knn import SCORE_BYTES, nearest_attention
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.shards import P, on_shards, spec_of
from infini_jax.parallel import zeros


class Store(NamedTuple):
  """The newest keys and values, the newest last; of which document, or 0 where there is nothing."""

  k_BMKE: jax.Array
  v_BMKU: jax.Array
  document_BM: jax.Array  # int32
  current_B: jax.Array  # the number of the lane's document, from 1


class Remembering(NamedTuple):
  """The state, or the stream, of a layer with a store."""

  xl: Any  # LastSegment, or XLStream
  store: Store


class Memorizing(TransformerXL):
  """State: Transformer-XL's, and the store in the layers of `knn_layers`."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    # Layers are stacked, so all of them have gates; those without a store never use theirs.
    self.beta_H = nnx.Param(jnp.full((config.heads,), config.memory.gate_init, jnp.float32))

  def groups(self) -> tuple[tuple[int, int], ...]:
    """Each layer with a store by itself, and what is between."""
    edges = {0, self.config.layers}
    for layer in self.config.memory.knn_layers:
      edges |= {layer - 1, layer}
    ordered = sorted(edges)
    return tuple(zip(ordered[:-1], ordered[1:], strict=True))

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Transformer-XL's, the scores of all that is stored, and the read of the nearest."""
    reads, stores = read_flops(c), len(c.memory.knn_layers)
    search = stores * (reads // 2 * c.memory.knn_memory + reads * c.memory.knn_top)
    return TransformerXL.memory_flops(c, layer) + search

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """Transformer-XL's, and the stores."""
    stores = len(c.memory.knn_layers)
    formula = f"2 K E (L N + {f'{stores} ' if stores > 1 else ''}M)"
    return formula, pair_size(c) * (c.layers * c.segment_length + stores * c.memory.knn_memory)

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """A store and its scores, beside Transformer-XL's."""
    N, M, pair = c.segment_length, c.memory.knn_memory, 2 * s.kv_heads * c.head_dim * s.compute
    stored, similar = s.lanes * (M + s.segments * N), 4 * s.lanes * s.heads * N * M
    return Work(s.tokens, 2 * N, 2 * (s.tokens + stored) * pair + 2 * min(similar, SCORE_BYTES))

  def state(self, lanes: int, layer: int = 0) -> Any:
    """Nothing was read before."""
    c, last = self.config, super().state(lanes)
    if layer + 1 not in c.memory.knn_layers:
      return last
    shape, dtype = (
      (lanes, c.memory.knn_memory, c.kv_heads, c.head_dim),
      jnp.dtype(c.run.compute_dtype),
    )
    store = Store(
      zeros(shape, "BMKE", dtype),
      zeros(shape, "BMKU", dtype),
      zeros(shape[:2], "BM", jnp.int32),
      zeros((lanes,), "B", jnp.int32) + 1,
    )
    return Remembering(last, store)

  def __call__(self, q_BTHE, k_BTKE, v_BTKE, state, *, reset_BS=None, mask_BT=None, cut=None):
    """A chunk: every segment searches what was stored before it began."""
    if not isinstance(state, Remembering):
      return super().__call__(
        q_BTHE, k_BTKE, v_BTKE, state, reset_BS=reset_BS, mask_BT=mask_BT, cut=cut
      )
    lanes, _, heads, _ = spec_of(q_BTHE)
    token, lane = P(lanes, None, heads), P(lanes)
    places = Remembering(LastSegment(token, token, lane), Store(token, token, lane, lane))
    return on_shards(
      self._read_both,
      *(q_BTHE, k_BTKE, v_BTKE, self._gate(), state, reset_BS, mask_BT, cut),
      specs=(token, token, token, P(heads), places, lane, lane, P()),
      out_specs=(token, places),
    )

  def _read_both(self, q_BTHE, k_BTKE, v_BTKE, gate_H, state, reset_BS, mask_BT, cut):
    B, T = q_BTHE.shape[:2]
    N, M, store = self.config.segment_length, self.config.memory.knn_memory, state.store
    S = -(-T // N)
    local_BTHU, last = self._read(q_BTHE, k_BTKE, v_BTKE, state.xl, reset_BS, mask_BT, cut)
    reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
    document_BS = store.current_B[:, None] + jnp.cumsum(reset_BS, axis=1, dtype=jnp.int32)
    new = Store(
      jax.lax.stop_gradient(k_BTKE),
      jax.lax.stop_gradient(v_BTKE),
      jnp.repeat(document_BS, N, axis=1)[:, :T],
      document_BS[:, -1],
    )
    if mask_BT is not None:
      real = lambda x: jnp.where(mask_BT.reshape(B, T, *(1,) * (x.ndim - 2)), x, 0)
      new = jax.tree.map(lambda x: real(x) if x.ndim > 1 else x, new)
    # All that was ever stored, in order: before segment s begins, the store is M of it from s N on.
    line = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1) if y.ndim > 1 else y, store, new)

    def segment(_, x):
      s, q_BNHE, own_B = x
      window = lambda x: jax.lax.dynamic_slice_in_dim(x, s * N, M, 1)
      seen_BM = window(line.document_BM) == own_B[:, None]
      return None, self._near(q_BNHE, window(line.k_BMKE), window(line.v_BMKU), seen_BM)

    q_SBNHE = jnp.moveaxis(to_segments(q_BTHE, N), 1, 0)
    xs = (jnp.arange(S), q_SBNHE, document_BS.T)
    _, (near, found) = jax.lax.scan(segment, None, xs)
    near_BTHU = jnp.moveaxis(near, 0, 1).reshape(B, S * N, *near.shape[3:])[:, :T]
    found_BT = jnp.repeat(found.T, N, axis=1)[:, :T]
    out_BTHU = self._mix(local_BTHU, near_BTHU, found_BT, gate_H, cut)
    newest = jax.tree.map(lambda x: x if x.ndim == 1 else x[:, T:], line)
    return out_BTHU, Remembering(last, newest)

  def open(self, state: Any, lanes: int, dtype: Any) -> Any:
    """An empty segment after the last one."""
    if not isinstance(state, Remembering):
      return super().open(state, lanes, dtype)
    return Remembering(super().open(state.xl, lanes, dtype), state.store)

  def close(self, stream: Any) -> Any:
    """The last segment and the store."""
    if not isinstance(stream, Remembering):
      return super().close(stream)
    return Remembering(super().close(stream.xl), stream.store)

  def extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT):
    """A few tokens of the open segment; when it is full, it is stored."""
    if not isinstance(stream, Remembering):
      return super().extend(q_BTHE, k_BTKE, v_BTKE, stream, mask_BT)
    lanes, _, heads, _ = spec_of(q_BTHE)
    token, lane = P(lanes, None, heads), P(lanes)
    xl = XLStream(LastSegment(token, token, lane), SegmentCache(token, token, lane))
    places = Remembering(xl, Store(token, token, lane, lane))
    return on_shards(
      self._extend_both,
      *(q_BTHE, k_BTKE, v_BTKE, self._gate(), stream, mask_BT),
      specs=(token, token, token, P(heads), places, lane),
      out_specs=(token, places),
    )

  def _extend_both(self, q_BTHE, k_BTKE, v_BTKE, gate_H, stream, mask_BT):
    xl, store = stream
    local_BTHU, after = self._extend(q_BTHE, k_BTKE, v_BTKE, xl, mask_BT)
    seen_BM = store.document_BM == store.current_B[:, None]
    near_BTHU, found_B = self._near(q_BTHE, store.k_BMKE, store.v_BMKU, seen_BM)
    found_BT = jnp.broadcast_to(found_B[:, None], mask_BT.shape)
    out_BTHU = self._mix(local_BTHU, near_BTHU, found_BT, gate_H, None)
    closed_B = (after.cache.fill_B == 0) & ((xl.cache.fill_B > 0) | mask_BT.any(1))
    N = self.config.segment_length
    own_BN = jnp.broadcast_to(store.current_B[:, None], (len(closed_B), N))
    moved = Store(
      jnp.concatenate([store.k_BMKE, after.cache.k_BNKE], 1)[:, N:],
      jnp.concatenate([store.v_BMKU, after.cache.v_BNKU], 1)[:, N:],
      jnp.concatenate([store.document_BM, own_BN], 1)[:, N:],
      store.current_B,
    )
    return out_BTHU, Remembering(after, where_lane(closed_B, moved, store))

  def _near(self, q_BTHE, k_BMKE, v_BMKU, seen_BM):
    """What the store gives each query, and in which lanes there was anything."""
    near = nearest_attention(q_BTHE, k_BMKE, v_BMKU, seen_BM, top=self.config.memory.knn_top)
    return near, seen_BM.any(1)

  def _mix(self, local_BTHU, near_BTHU, found_BT, gate_H, cut):
    """The local output is whole while the store is empty, or cut away."""
    share_BTH = jnp.where(found_BT[:, :, None], gate_H[None, None], 0.0)
    if cut is not None:
      near_BTHU = jnp.where(cut, 0.0, near_BTHU)
    share = share_BTH[..., None].astype(local_BTHU.dtype)
    return share * near_BTHU + (1 - share) * local_BTHU

  def _gate(self):
    return gate_values(self.beta_H[...].astype(jnp.float32), self.config.memory.gate)
