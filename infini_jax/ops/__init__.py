"""Pure functions on arrays: memory, attention, rotary positions, loss. They need jax alone."""

from infini_jax.ops.infini import infini_attention
from infini_jax.ops.memory import MemoryState, Rule, gate_values

__all__ = ["MemoryState", "Rule", "gate_values", "infini_attention"]
