"""The inputs of a layer with a memory."""

from typing import NamedTuple

from jaxtyping import Array

from infini_jax.ops import memory as mem
from infini_jax.ops.attention import QKV
from infini_jax.ops.memory import MemoryState, Update
from infini_jax.ops.rule import Rule


class Inputs(NamedTuple):
  """The projections of the tokens of a layer, together; `infini_attention` describes each."""

  q_BTHE: Array
  k_BTKE: Array
  v_BTKU: Array
  mask_BT: Array | None
  write_BTK: Array | None
  decay_BTK: Array | None
  own: QKV | None

  def memory(self) -> QKV:
    """The queries, keys and values that the memory takes."""
    return self.own or QKV(self.q_BTHE, self.k_BTKE, self.v_BTKU)


def summary(inputs: Inputs, memory: MemoryState, rule: Rule) -> Update:
  """The update of the memory by these tokens."""
  _, k_BTKE, v_BTKU = inputs.memory()
  counts = inputs.write_BTK, inputs.decay_BTK
  return mem.summarize(k_BTKE, v_BTKU, memory, inputs.mask_BT, rule, *counts)
