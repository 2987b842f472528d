"""Pure functions on arrays: memory, attention, rotary positions, loss. They need jax alone."""

from infini_jax.ops.infini import infini_attention
from infini_jax.ops.memory import MemoryState, gate_values
from infini_jax.ops.rule import Rule

__all__ = ["MemoryState", "Rule", "gate_values", "infini_attention"]
