"""What a model costs, by arithmetic: parameters, FLOPs, and the peak they are compared with."""

import math
from typing import Any

import jax

from infini_jax.config import ModelConfig

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets, by the start of its kind.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


def parameter_count(params: Any) -> int:
  """Numbers in a parameter tree, abstract or real."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops_per_token(config: ModelConfig, tokens: int) -> float:
  """Floating-point operations of training on one token, forward and backward.

  The strictest count: products only, attention halved for causality, nothing for rematerialization
  and nothing for the embedding look-up. It does not grow with T, except for the mixer `full`.

  Args:
    config: the model.
    tokens: T, the tokens that attend to each other when the mixer is `full`.
  """
  c = config
  projections = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
  ffn = c.width * c.ffn * (3 if c.activation == "swiglu" else 2)
  weights = c.layers * (projections + ffn) + c.vocab_size * c.width
  seen = tokens if c.mixer == "full" else min(tokens, c.segment_length)
  attention = c.heads * (seen + 1) * 2 * c.head_dim
  memory = 0
  if c.mixer == "infini":
    touched = c.heads + c.kv_heads * (2 if c.rule == "delta" else 1)
    memory = 2 * c.head_dim**2 * touched
  return 3.0 * (2 * weights + c.layers * (attention + memory))


def peak_flops(device_kind: str) -> float | None:
  """The peak of a kind of device, or None where it is not known (a CPU, say)."""
  for kind, peak in PEAK_FLOPS.items():
    if device_kind.startswith(kind):
      return peak
  return None
