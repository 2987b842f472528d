"""What a model costs, by arithmetic alone: parameters, FLOPs, and the chips they run on."""

from infini_jax.plan.chips import CHIPS, Chip, peak_flops
from infini_jax.plan.flops import executed_flops_per_token, flops_per_token, parameter_count
from infini_jax.plan.slices import is_size, nearest, slices, together

__all__ = [
  "CHIPS",
  "Chip",
  "executed_flops_per_token",
  "flops_per_token",
  "is_size",
  "nearest",
  "parameter_count",
  "peak_flops",
  "slices",
  "together",
]
