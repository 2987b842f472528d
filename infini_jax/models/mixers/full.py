"""Causal attention over the whole document: the upper bound, whose state grows with every token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Mixer, Work, pair_size
from infini_jax.ops.attention import UNSEEN, attention, put
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import on_shards, token_axes
from infini_jax.parallel import zeros


class KVCache(NamedTuple):
  """Rotated keys and values of each lane's document; slot i holds its token i."""

  k_BCKE: jax.Array
  v_BCKE: jax.Array
  document_BC: jax.Array  # which of the lane's documents wrote the slot
  position_B: jax.Array  # of the next token in its document
  current_B: jax.Array  # the number of the lane's document, from 1


class Full(Mixer):
  """State: the keys and values of everything read. `reserve` makes room before a call."""

  def state(self, lanes: int, layer: int = 0) -> KVCache:
    """A cache without slots: enough for a chunk by itself, as in training."""
    c = self.config
    shape = (lanes, 0, c.kv_heads, c.head_dim)
    empty = zeros(shape, "BCKE", jnp.dtype(c.run.compute_dtype))
    number = zeros((lanes,), "B", jnp.int32)
    return KVCache(empty, empty, zeros((lanes, 0), "BC", jnp.int32), number, number + 1)

  def __call__(self, tokens, chunk, state):
    """A chunk: its tokens see each other and the slots of their own document.

    Cut, every segment is a document of its own, for the state after the chunk too.
    """
    return on_shards(
      self._read,
      token_axes(tokens.q_BTHE, whole=True),
      ("BTHE", state),
      **tokens.projections(),
      state=state,
      reset_BS=chunk.reset_BS,
      mask_BT=chunk.mask_BT,
      cut=chunk.cut,
      windowed=chunk.windowed,
    )

  def _read(self, q_BTHE, k_BTKE, v_BTKE, state, reset_BS, mask_BT, cut, windowed):
    B, T = q_BTHE.shape[:2]
    N, C = self.config.segment_length, state.document_BC.shape[1]
    index_BT = jnp.arange(T, dtype=jnp.int32)[None]
    mask_BT = jnp.ones((B, T), bool) if mask_BT is None else mask_BT
    start_BT = jnp.zeros((B, T), bool)
    if cut is not None:
      none_BS = jnp.zeros((B, -(-T // N)), bool)
      reset_BS = (none_BS if reset_BS is None else reset_BS) | cut
    if reset_BS is not None:
      spread = jnp.broadcast_to(reset_BS[:, :, None], (*reset_BS.shape, N)).reshape(B, -1)
      start_BT = spread[:, :T] & (index_BT % N == 0)
    new_BT = jnp.cumsum(start_BT, axis=1, dtype=jnp.int32)
    read_BT = jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32)
    before_BT = jax.lax.cummax(jnp.where(start_BT, read_BT - mask_BT.astype(jnp.int32), 0), axis=1)
    position_BT = read_BT - 1 - before_BT + jnp.where(new_BT == 0, state.position_B[:, None], 0)
    document_BT = state.current_B[:, None] + new_BT
    current_B = document_BT[:, -1]
    rope = self.rope(windowed)
    q_BTHE, k_BTKE = (rotate(x, position_BT, rope) for x in (q_BTHE, k_BTKE))

    slots_BC = jnp.broadcast_to(jnp.arange(C, dtype=jnp.int32)[None], (B, C))
    out_BTHE = attention(
      q_BTHE,
      jnp.concatenate([state.k_BCKE, k_BTKE], 1),
      jnp.concatenate([state.v_BCKE, v_BTKE], 1),
      position_BT,
      jnp.concatenate([slots_BC, jnp.where(mask_BT, position_BT, UNSEEN)], 1),
      document_BT,
      jnp.concatenate([state.document_BC, document_BT], 1),
      scoring=self.scoring(),
      reach=self._reach(windowed),
      aligned=C == 0,
    )
    if C:
      kept_BT = jnp.where(mask_BT & (document_BT == current_B[:, None]), position_BT, C)
      state = state._replace(
        k_BCKE=put(state.k_BCKE, kept_BT, k_BTKE),
        v_BCKE=put(state.v_BCKE, kept_BT, v_BTKE),
        document_BC=put(state.document_BC, kept_BT, document_BT),
      )
    return out_BTHE, state._replace(position_B=position_BT[:, -1] + 1, current_B=current_B)

  def _reach(self, windowed):
    """Tokens of its document that a query sees; None: all."""
    window = self.config.family.window
    if windowed is None or not window:
      return window or None
    return jnp.where(windowed, window, UNSEEN)

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """Of each token."""
    return "2 L K E", c.layers * pair_size(c)

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """Each query attends to the whole text."""
    return Work(s.tokens, s.seq * s.segments * c.segment_length)

  def open(self, state: KVCache, lanes: int, dtype: Any) -> KVCache:
    """The same cache: there are no segments to open."""
    return state

  @staticmethod
  def close(stream: KVCache) -> KVCache:
    """The same cache."""
    return stream

  def extend(self, tokens, chunk, stream):
    """Adds a few tokens."""
    return self(tokens, chunk, stream)

  @staticmethod
  def reserve(state: KVCache, tokens: int) -> KVCache:
    """Makes room for more tokens by doubling, so that shapes change rarely. Layers are in front."""
    C = state.document_BC.shape[2]
    need = int(state.position_B.max()) + tokens
    if need <= C:
      return state

    def pad(x):
      return jnp.pad(x, [(0, max(need, 2 * C) - C if i == 2 else 0) for i in range(x.ndim)])

    return state._replace(
      k_BCKE=pad(state.k_BCKE), v_BCKE=pad(state.v_BCKE), document_BC=pad(state.document_BC)
    )
