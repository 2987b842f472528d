"""Memorizing Transformers (Wu et al., arXiv 2203.08913): a store of keys, and the nearest of them.

All layers are Transformer-XL's. Chosen ones also keep the newest J keys and values of the document,
un-rotated and without gradient; every query attends to the few that are most like it, and a
gate per head mixes that with the local output: `g near + (1 - g) local`, g = sigmoid(beta).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Work, pair_size, read_flops
from infini_jax.models.mixers.transformer_xl import LastSegment, TransformerXL
from infini_jax.ops import gate_values
from infini_jax.ops.attention import to_segments
from infini_jax.ops.knn import SCORE_BYTES, nearest_attention
from infini_jax.ops.shards import on_shards, token_axes
from infini_jax.parallel import zeros


class Store(NamedTuple):
  """The newest keys and values, the newest last; of which document, or 0 where there is nothing."""

  k_BJKE: jax.Array
  v_BJKU: jax.Array
  document_BJ: jax.Array  # int32
  current_B: jax.Array  # the number of the lane's document, from 1


class Remembering(NamedTuple):
  """The state of a layer with a store."""

  xl: LastSegment
  store: Store


class Memorizing(TransformerXL):
  """State: Transformer-XL's, and the store in the layers of `knn_layers`."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    # Layers are stacked, so all of them have gates; those without a store never use theirs.
    self.beta_H = nnx.Param(jnp.full((config.heads,), config.memory.gate_init, jnp.float32))

  def groups(self) -> tuple[tuple[int, int], ...]:
    """Each layer with a store by itself, and the layers between them."""
    edges = {0, self.config.layers}
    for layer in self.config.memory.knn_layers:
      edges |= {layer - 1, layer}
    ordered = sorted(edges)
    return tuple(zip(ordered[:-1], ordered[1:], strict=True))

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """The work of Transformer-XL, the scores of all stored keys, and the read of the nearest."""
    reads, stores = read_flops(c), len(c.memory.knn_layers)
    search = stores * (reads // 2 * c.memory.knn_memory + reads * c.memory.knn_top)
    return TransformerXL.memory_flops(c, layer) + search

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """Transformer-XL's, and the stores."""
    stores = len(c.memory.knn_layers)
    formula = f"2 K E (L N + {f'{stores} ' if stores > 1 else ''}J)"
    return formula, pair_size(c) * (c.layers * c.segment_length + stores * c.memory.knn_memory)

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """A store and its scores, in addition to Transformer-XL's."""
    N, J, pair = c.segment_length, c.memory.knn_memory, 2 * s.kv_heads * c.head_dim * s.compute
    stored, similar = s.lanes * (J + s.segments * N), 4 * s.lanes * s.heads * N * J
    return Work(s.tokens, 2 * N, 2 * (s.tokens + stored) * pair + 2 * min(similar, SCORE_BYTES))

  def state(self, lanes: int, layer: int = 0) -> Any:
    """The state before any token: empty."""
    c, last = self.config, super().state(lanes)
    if layer + 1 not in c.memory.knn_layers:
      return last
    shape, dtype = (
      (lanes, c.memory.knn_memory, c.kv_heads, c.head_dim),
      jnp.dtype(c.run.compute_dtype),
    )
    store = Store(
      zeros(shape, "BJKE", dtype),
      zeros(shape, "BJKU", dtype),
      zeros(shape[:2], "BJ", jnp.int32),
      zeros((lanes,), "B", jnp.int32) + 1,
    )
    return Remembering(last, store)

  def read(self, tokens, position_BT, segment, state, chunk):
    """As Transformer-XL, and the nearest keys of the store, by the gate of each head."""
    if not isinstance(state, Remembering):
      return super().read(tokens, position_BT, segment, state, chunk)
    local_BTHU = super().read(tokens, position_BT, segment, state.xl, chunk)

    def on_one(local_BTHU, q_BTHE, gate_H, store, cut):
      seen_BJ = store.document_BJ == store.current_B[:, None]
      near_BTHU, found_B = self._near(q_BTHE, store.k_BJKE, store.v_BJKU, seen_BJ)
      found_BT = jnp.broadcast_to(found_B[:, None], q_BTHE.shape[:2])
      return self._mix(local_BTHU, near_BTHU, found_BT, gate_H, cut)

    return on_shards(
      on_one,
      token_axes(tokens.q_BTHE, whole=True),
      "BTHU",
      local_BTHU=local_BTHU,
      q_BTHE=tokens.q_BTHE,
      gate_H=self._gate(),
      store=state.store,
      cut=chunk.cut,
    )

  def write(self, segment, state):
    """As Transformer-XL; the segment is added to the store, and the oldest keys are removed."""
    if not isinstance(state, Remembering):
      return super().write(segment, state)
    store, mask_BN = state.store, segment.mask()
    N = mask_BN.shape[1]
    kept = lambda x: jnp.where(mask_BN[..., None, None], jax.lax.stop_gradient(x), 0)
    pushed = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], 1)[:, N:]
    own_BN = jnp.where(mask_BN, store.current_B[:, None], 0)
    store = Store(
      pushed(store.k_BJKE, kept(segment.k_BNKE)),
      pushed(store.v_BJKU, kept(segment.v_BNKU)),
      pushed(store.document_BJ, own_BN),
      store.current_B,
    )
    return Remembering(super().write(segment, state.xl), store)

  def emptied(self, state):
    """Starts another document: the previous one is no longer seen."""
    if not isinstance(state, Remembering):
      return super().emptied(state)
    store = state.store._replace(current_B=state.store.current_B + 1)
    return Remembering(super().emptied(state.xl), store)

  def __call__(self, tokens, chunk, state):
    """A chunk: every segment searches what was stored before it began."""
    if not isinstance(state, Remembering):
      return super().__call__(tokens, chunk, state)
    return on_shards(
      self._read_both,
      token_axes(tokens.q_BTHE, whole=True),
      ("BTHU", state),
      **tokens.projections(),
      gate_H=self._gate(),
      state=state,
      reset_BS=chunk.reset_BS,
      mask_BT=chunk.mask_BT,
      cut=chunk.cut,
    )

  def _read_both(self, q_BTHE, k_BTKE, v_BTKE, gate_H, state, reset_BS, mask_BT, cut):
    B, T = q_BTHE.shape[:2]
    N, J, store = self.config.segment_length, self.config.memory.knn_memory, state.store
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
    # All stored tokens in their order. Before segment s, the store is J of them, from s N on.
    line = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1) if y.ndim > 1 else y, store, new)

    def segment(_, x):
      s, q_BNHE, own_B = x
      window = lambda x: jax.lax.dynamic_slice_in_dim(x, s * N, J, 1)
      seen_BJ = window(line.document_BJ) == own_B[:, None]
      return None, self._near(q_BNHE, window(line.k_BJKE), window(line.v_BJKU), seen_BJ)

    q_SBNHE = jnp.moveaxis(to_segments(q_BTHE, N), 1, 0)
    xs = (jnp.arange(S), q_SBNHE, document_BS.T)
    _, (near, found) = jax.lax.scan(segment, None, xs)
    near_BTHU = jnp.moveaxis(near, 0, 1).reshape(B, S * N, *near.shape[3:])[:, :T]
    found_BT = jnp.repeat(found.T, N, axis=1)[:, :T]
    out_BTHU = self._mix(local_BTHU, near_BTHU, found_BT, gate_H, cut)
    newest = jax.tree.map(lambda x: x if x.ndim == 1 else x[:, T:], line)
    return out_BTHU, Remembering(last, newest)

  def _near(self, q_BTHE, k_BJKE, v_BJKU, seen_BJ):
    """The read of the store for each query, and the lanes whose store is not empty."""
    near = nearest_attention(q_BTHE, k_BJKE, v_BJKU, seen_BJ, top=self.config.memory.knn_top)
    return near, seen_BJ.any(1)

  def _mix(self, local_BTHU, near_BTHU, found_BT, gate_H, cut):
    """Mixes the read of the store with the local output. Nothing is mixed while the store is
    empty or cut."""
    share_BTH = jnp.where(found_BT[:, :, None], gate_H[None, None], 0.0)
    if cut is not None:
      near_BTHU = jnp.where(cut, 0.0, near_BTHU)
    share = share_BTH[..., None].astype(local_BTHU.dtype)
    return share * near_BTHU + (1 - share) * local_BTHU

  def _gate(self):
    return gate_values(self.beta_H[...].astype(jnp.float32), self.config.memory.gate)
