"""Infini-attention: local attention and a compressive memory, one learned gate per head."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.lora import Adapter
from infini_jax.models.mixers.base import GATE, Work, empty_segment
from infini_jax.models.mixers.local import Local
from infini_jax.ops import memory as mem
from infini_jax.ops.infini import infini_attention
from infini_jax.ops.memory import MemoryState
from infini_jax.ops.rule import Rule
from infini_jax.ops.shards import on_shards, token_axes
from infini_jax.ops.stream import InfiniStream, extend_stream, open_stream
from infini_jax.parallel import product, zeros

WRITE_INIT = 2.0  # of 3, from which on a write gate is open, and has no gradient


class Infini(Local):
  """State: the float32 memory `(M_BKEU, z_BKE)`."""

  scored = False  # whether a segment's decay is by the scores of its tokens
  tensors: ClassVar[dict[str, tuple[str, bool]]] = {
    GATE: ("beta", False),
    "w_write_DK": ("write.weight", True),
    "b_write_K": ("write.bias", False),
    **{f"lora_{x}.down_DR": (f"{x}_down.weight", True) for x in "qkv"},
    "lora_q.up_RHE": ("q_up.weight", True),
    "lora_k.up_RKE": ("k_up.weight", True),
    "lora_v.up_RKE": ("v_up.weight", True),
  }

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = self.config = config
    self.rule = Rule(c.memory.rule, *(getattr(c.memory, name) for name in Rule._fields[1:]))
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

  def read(self, tokens, position_BT, segment, state, chunk):
    """Mixes local attention and the read-out of the memory by the gate of each head."""
    local_BTHU = super().read(tokens, position_BT, segment, state, chunk)

    def on_one(local_BTHU, q_BTHE, state, beta_H, cut):
      return mem.mix(local_BTHU, mem.read(q_BTHE, state), state.z_BKE, beta_H, self.rule, cut)

    return on_shards(
      on_one,
      token_axes(tokens.q_BTHE, whole=True),
      "BTHU",
      local_BTHU=local_BTHU,
      q_BTHE=self._queries(tokens.q_BTHE, tokens.x_BTD),
      state=state,
      beta_H=self._beta(),
      cut=chunk.cut,
    )

  def write(self, segment, state):
    """The rule's update of the memory."""
    k_BNKE, v_BNKU = self._pairs(segment.k_BNKE, segment.v_BNKU, segment.x_BNI)
    counts = {"write_BNK": self._write(segment.x_BNI), "decay_BNK": self._decay(segment.x_BNI)}

    def on_one(state, k_BNKE, v_BNKU, mask_BN, **counts):
      update = mem.summarize(k_BNKE, v_BNKU, state, mask_BN, self.rule, **counts)
      return mem.commit(state, update, self.rule)

    pairs = {"k_BNKE": k_BNKE, "v_BNKU": v_BNKU}
    axes = token_axes(k_BNKE, whole=True)
    return on_shards(on_one, axes, state, state=state, mask_BN=segment.mask(), **pairs, **counts)

  def __call__(self, tokens, chunk, state):
    """A chunk of whole segments."""
    c = self.config
    return infini_attention(
      tokens.q_BTHE,
      tokens.k_BTKE,
      tokens.v_BTKE,
      self._beta(),
      state,
      segment_length=c.segment_length,
      reset_BS=chunk.reset_BS,
      mask_BT=chunk.mask_BT,
      implementation=c.run.implementation,
      attention=c.run.attention,
      **self._options(tokens, chunk),
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

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """M and z before each segment, and of an affine rule their maps; float32 copies of what the
    memory is read and written with."""
    E = c.head_dim
    state = s.lanes * s.kv_heads * E * (E + 1) * 4
    states = 4 * s.segments * state * (2 if c.memory.affine else 1)
    floats = (4 * s.heads + 2 * s.kv_heads) * E * 4  # sigma, read-outs
    return Work(s.tokens, c.segment_length, states, floats, state)

  def open(self, state: MemoryState, lanes: int, dtype: Any) -> InfiniStream:
    """The state of the segment that begins after whole ones."""
    return open_stream(state, empty_segment(self.config, lanes, dtype), self.rule, self.scored)

  @staticmethod
  def close(stream: InfiniStream) -> MemoryState:
    """The memory."""
    return stream.memory

  def extend(self, tokens, chunk, stream):
    """A few tokens of the open segment; their update of the memory is summed token by token."""
    q_BTHE, k_BTKE, v_BTKE = tokens.q_BTHE, tokens.k_BTKE, tokens.v_BTKE
    options = self._options(tokens, chunk)
    return extend_stream(q_BTHE, k_BTKE, v_BTKE, self._beta(), stream, chunk.mask_BT, **options)

  def _options(self, tokens, chunk) -> dict[str, Any]:
    """What a chunk and an extension have in common."""
    q_BTHE, k_BTKE, v_BTKE, x_BTD, _ = tokens
    own = None
    if self.config.memory.adapter_rank:
      own = (self._queries(q_BTHE, x_BTD), *self._pairs(k_BTKE, v_BTKE, x_BTD))
    return {
      "rule": self.rule,
      "rope_theta": self.rope(chunk.windowed),
      "scoring": self.scoring(),
      "cut": chunk.cut,
      "own": own,
      "write_BTK": self._counted(self._write(x_BTD), chunk.times_BT),
      "decay_BTK": self._decay(x_BTD),
    }

  def _queries(self, q_BTHE, x_BTD):
    """The memory's queries."""
    return q_BTHE + self.lora_q(x_BTD) if self.config.memory.adapter_rank else q_BTHE

  def _pairs(self, k_BTKE, v_BTKE, x_BTD):
    """The memory's keys and values."""
    if not self.config.memory.adapter_rank:
      return k_BTKE, v_BTKE
    return k_BTKE + self.lora_k(x_BTD), v_BTKE + self.lora_v(x_BTD)

  def _write(self, x_BTD):
    """The fraction of each token that is written, from its hidden state; None: 1 for all tokens."""
    if not self.config.memory.write_gate:
      return None
    x_BTD = x_BTD.astype(jnp.float32)
    score_BTK = product("BTD,DK->BTK", x_BTD, self.w_write_DK[...])
    write_BTK = jax.nn.hard_sigmoid(score_BTK + self.b_write_K[...][None, None])
    if penalty := self.config.memory.write_penalty:
      write_BTK = with_penalty(write_BTK, penalty / self.config.layers)
    return write_BTK

  def _counted(self, write_BTK, times_BT):
    """The same for tokens that are counted several times."""
    if times_BT is None:
      return write_BTK
    if write_BTK is None:
      write_BTK = jnp.ones((1, 1, self.config.kv_heads), jnp.float32)
    return write_BTK * times_BT[..., None]

  def _decay(self, x_BTD):
    """The scores of the tokens for a learned decay; None: the decay is the rule's."""
    return None

  def _beta(self):
    return self.beta_H[...].astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_penalty(x: jax.Array, weight: float) -> jax.Array:
  """Returns x. Its gradient is that of the loss plus `weight` times the mean of x."""
  del weight
  return x


def _forward(x, weight):
  del weight
  return x, None


def _backward(weight, _, gradient):
  return (gradient + weight / gradient.size,)


with_penalty.defvjp(_forward, _backward)
