"""Infini-attention: local attention and a compressive memory, one learned gate per head."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.lora import Adapter
from infini_jax.models.mixers.base import Mixer
from infini_jax.models.mixers.local import empty_cache
from infini_jax.ops.infini import InfiniStream, extend_stream, infini_attention, open_stream
from infini_jax.ops.memory import MemoryState, Rule
from infini_jax.parallel import product, zeros

WRITE_INIT = 2.0  # of 3, from which on a write gate is open, and has no gradient


class Infini(Mixer):
  """State: the float32 memory `(M_BKEU, z_BKE)`."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = self.config = config
    self.rule = Rule(c.memory.rule, c.memory.normalize_keys, c.memory.z_correction, c.memory.decay)
    self.beta_H = nnx.Param(jnp.full((c.heads,), c.memory.gate_init, jnp.float32))
    self.reads_hidden = c.memory.write_gate or c.memory.adapter_rank > 0
    if c.memory.adapter_rank:
      heads, kv_heads = {"H": c.heads, "E": c.head_dim}, {"K": c.kv_heads, "E": c.head_dim}
      adapter = partial(Adapter, c, rngs, {"D": c.width}, rank=c.memory.adapter_rank)
      self.lora_q, self.lora_k, self.lora_v = adapter(heads), adapter(kv_heads), adapter(kv_heads)
    if c.memory.write_gate:
      self.w_write_DK = nnx.Param(jnp.zeros((c.width, c.kv_heads), jnp.float32))
      self.b_write_K = nnx.Param(jnp.full((c.kv_heads,), WRITE_INIT, jnp.float32))

  def state(self, lanes: int, layer: int = 0) -> MemoryState:
    """The empty memory."""
    c = self.config
    shape = (lanes, c.kv_heads, c.head_dim)
    return MemoryState(
      zeros((*shape, c.head_dim), "BKEU", jnp.float32), zeros(shape, "BKE", jnp.float32)
    )

  def __call__(
    self, q_BTHE, k_BTKE, v_BTKE, state,
    *, reset_BS=None, mask_BT=None, cut=None, windowed=None, x_BTD=None, project=None,
  ):  # fmt: skip
    """A chunk of whole segments."""
    c = self.config
    return infini_attention(
      q_BTHE,
      k_BTKE,
      v_BTKE,
      self._beta(),
      state,
      segment_length=c.segment_length,
      reset_BS=reset_BS,
      mask_BT=mask_BT,
      cut=cut,
      implementation=c.run.implementation,
      attention=c.run.attention,
      **self._of_tokens(q_BTHE, k_BTKE, v_BTKE, x_BTD),
      **self._how(windowed),
    )

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Each query reads the matrix, each key writes it, and reads it first by the delta rule."""
    touched = c.heads + c.kv_heads * (2 if c.memory.affine else 1)
    writes = 2 * c.width * c.kv_heads * c.memory.write_gate
    own = 2 * c.memory.adapter_rank * (3 * c.width + (c.heads + 2 * c.kv_heads) * c.head_dim)
    return c.layers * (2 * c.head_dim**2 * touched + writes + own)

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """M and z."""
    return "L K (E U + E)", c.layers * c.kv_heads * c.head_dim * (c.head_dim + 1)

  def open(self, state: MemoryState, lanes: int, dtype: Any) -> InfiniStream:
    """The state of the segment that begins after whole ones."""
    return open_stream(state, empty_cache(self.config, lanes, dtype), self.rule)

  def close(self, stream: InfiniStream) -> MemoryState:
    """The memory."""
    return stream.memory

  def extend(
    self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT, *, windowed=None, x_BTD=None, project=None
  ):
    """A few tokens of the open segment."""
    how = self._how(windowed) | self._of_tokens(q_BTHE, k_BTKE, v_BTKE, x_BTD)
    return extend_stream(q_BTHE, k_BTKE, v_BTKE, self._beta(), stream, mask_BT, **how)

  def _of_tokens(self, q_BTHE, k_BTKE, v_BTKE, x_BTD) -> dict[str, Any]:
    """What the memory is told of each token beside its query, key and value."""
    own = self._own(q_BTHE, k_BTKE, v_BTKE, x_BTD)
    return {"write_BTK": self._write(x_BTD), "own": own}

  def _how(self, windowed) -> dict[str, Any]:
    """What a chunk and an extension have in common."""
    c = self.config
    return {
      "rule": self.rule,
      "rope_theta": self.rope(windowed),
      "scoring": self.scoring(),
      "scale_first_segment": c.memory.scale_first_segment,
      "gate": c.memory.gate,
      "readout_norm": c.memory.readout_norm,
    }

  def _write(self, x_BTD):
    """How much of each token is written, from its hidden state; None: all of every token."""
    if not self.config.memory.write_gate:
      return None
    x_BTD = x_BTD.astype(jnp.float32)
    score_BTK = product("BTD,DK->BTK", x_BTD, self.w_write_DK[...])
    return jax.nn.hard_sigmoid(score_BTK + self.b_write_K[...][None, None])

  def _own(self, q_BTHE, k_BTKE, v_BTKE, x_BTD):
    """The memory's own queries, keys and values; None: those of the local attention."""
    if not self.config.memory.adapter_rank:
      return None
    return q_BTHE + self.lora_q(x_BTD), k_BTKE + self.lora_k(x_BTD), v_BTKE + self.lora_v(x_BTD)

  def _beta(self):
    return self.beta_H[...].astype(jnp.float32)
