"""The model: parameters, and how they are used."""

from infini_jax.models.lora import merged
from infini_jax.models.parameters import (
  abstract_params,
  bind,
  build,
  completed,
  init,
  param_shapes,
)
from infini_jax.models.transformer import Transformer

__all__ = [
  "Transformer",
  "abstract_params",
  "bind",
  "build",
  "completed",
  "init",
  "merged",
  "param_shapes",
]
