"""The layer of systems whose memory is summaries: causal attention after a prefix of summaries.

The systems themselves, which run all layers over one segment after the other, are in
`summaries.py`. Here a chunk is one segment: the prefix, its tokens, what is summed up.
"""

from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import Stream, Work, empty_segment, pair_size, read_flops
from infini_jax.models.mixers.transformer_xl import LastSegment, TransformerXL
from infini_jax.ops.attention import segment_attention
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import on_shards, token_axes

BACK = 2  # segments that the gradient of an AutoCompressor goes through


class Prefixed(TransformerXL):
  """State of a layer, made by each call: the prefix's un-rotated keys and values. It is where
  Transformer-XL has the segment before.

  `placed` and `carried` are what distinguishes the systems: `summaries.SummaryTransformer`.
  """

  of_model = ("summary_PD",)

  def state(self, lanes: int, layer: int = 0) -> Any:
    """There is no state of a layer: the model has it."""
    return ()

  @staticmethod
  def placed(
    x_BAI: jax.Array, seen_BA: jax.Array, learned_BPD: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What precedes a segment, which of its tokens are there, and what follows the segment.

    Args:
      x_BAI: the summaries.
      seen_BA: which of them are there.
      learned_BPD: the learned embeddings.
    """
    return x_BAI, seen_BA, learned_BPD

  @staticmethod
  def carried(x_1BAI: jax.Array, s: jax.Array) -> jax.Array:
    """The summaries before segment `s` of a chunk, as far as a gradient goes through them."""
    return x_1BAI

  def __call__(self, tokens, chunk, state):
    """One segment with its prefix; the state is that of its prefix."""
    return on_shards(
      self._whole,
      token_axes(tokens.q_BTHE, whole=True),
      ("BTHU", LastSegment("BNKE", "BNKU", "BN")),  # type: ignore[arg-type]
      **tokens.projections(),
      mask_BT=chunk.mask_BT,
    )

  def _whole(self, q_BTHE, k_BTKE, v_BTKE, mask_BT):
    A = self.config.memory.prefix_length
    # Behind the prefix only real tokens count: what is summed up follows the last of them directly.
    behind_BN = A - 1 + jnp.cumsum(mask_BT[:, A:], 1, dtype=jnp.int32)
    before_BA = jnp.broadcast_to(jnp.arange(A, dtype=jnp.int32)[None], (len(mask_BT), A))
    position_BT = jnp.concatenate([before_BA, behind_BN], 1)
    rotated = lambda x: rotate(x, position_BT, self.rope())[:, None]
    out = segment_attention(
      rotated(q_BTHE), rotated(k_BTKE), v_BTKE[:, None], mask_BT[:, None], kernel="xla"
    )
    return out[:, 0], LastSegment(k_BTKE[:, :A], v_BTKE[:, :A], mask_BT[:, :A])

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Embeddings before and after a segment go through all layers; its tokens attend to them."""
    N = c.segment_length
    whole = N + c.memory.prefix_length + c.memory.summary_tokens
    pairs = (whole * (whole + 1) - N * (N + 1)) / 2
    return c.layers * (layer * (whole - N) + read_flops(c) * pairs) / N

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """A segment with what precedes and follows it; without rematerialization all are kept."""
    m, at_once = c.memory, s.segments if c.run.remat == "none" else 1
    longest = c.segment_length * (1 + m.segment_jitter if m.moves_borders else 1)
    whole = m.prefix_length + longest + m.summary_tokens
    return Work(s.lanes * whole * at_once, whole)

  def open(self, state: LastSegment, lanes: int, dtype: Any) -> Stream:
    """An empty segment after the prefix, with room for the summary tokens."""
    c = self.config
    return Stream(state, empty_segment(c, lanes, dtype, c.segment_length + c.memory.summary_tokens))

  def extend(self, tokens, chunk, stream):
    """The model closes the segment, and not the layer."""
    return self.append(tokens, chunk, stream)


class Rmt(Prefixed):
  """A layer of an RMT: the memory precedes and follows its segment."""

  @staticmethod
  def placed(x_BAI, seen_BA, learned_BPD):
    """The memory, at first the learned embeddings."""
    memory_BPD = jnp.where(seen_BA[..., None], x_BAI, learned_BPD)
    return memory_BPD, jnp.ones_like(seen_BA), memory_BPD

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """The keys and values of the memory embeddings in each layer."""
    return "2 L K E P", c.layers * pair_size(c) * c.memory.summary_tokens


class Autocompressor(Prefixed):
  """A layer of an AutoCompressor: summaries before a segment, learned embeddings behind it."""

  @staticmethod
  def carried(x_1BAI, s):
    """The gradient goes through `BACK` segments."""
    return jnp.where(s % BACK == 0, jax.lax.stop_gradient(x_1BAI), x_1BAI)

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """The keys and values in each layer of the summaries of m segments."""
    return "2 L K E P m", c.layers * pair_size(c) * c.memory.prefix_length
