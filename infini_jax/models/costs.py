"""Parameters and floating-point operations, counted from the config.

XLA's own count is not used: it counts the body of a loop once, and does not count the operations of
a kernel.
"""

import dataclasses
import math
from typing import Any

import jax

from infini_jax.config import ModelConfig
from infini_jax.models.mixers import MIXERS


def parameter_count(params: Any) -> int:
  """Numbers in a parameter tree, abstract or real."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops_per_token(config: ModelConfig, tokens: int, part: str = "all") -> float:
  """Floating-point operations of training on one token, forward and backward.

  The strictest count: products only, attention halved for causality, nothing for rematerialization
  and nothing for the embedding look-up. It does not grow with T, except for attention over
  the whole text.

  Args:
    config: the model.
    tokens: T, the tokens that attend to each other where attention goes over the whole text.
    part: which weights are trained, as `config.train.part`: the others have no gradient.
  """
  return 3.0 * sum(forward_flops(config, tokens).values()) - sum(_frozen_flops(config, part))


def executed_flops_per_token(
  config: ModelConfig, tokens: int, part: str = "all", *, block: int, head_again: bool
) -> float:
  """The operations that a device computes for one token, with rematerialization and whole blocks.

  Args:
    config: the model; its `run.remat` says what a layer computes again.
    tokens: as in `flops_per_token`.
    part: likewise.
    block: rows of a block of attention scores, which is computed whole on the diagonal.
    head_again: whether the logits are computed again for the gradient.
  """
  # What lies outside a window is masked, not skipped.
  unbounded = dataclasses.replace(config.family, window=0)
  parts = forward_flops(config, tokens)
  attention = 0.0
  for name, own in config.by_system.items():
    seen = _seen(own, tokens)
    whole = (seen + min(block, seen)) / (seen + 1)  # of causal squares that are computed in blocks
    unbounded_of = dataclasses.replace(own, family=unbounded)
    attention += _attention_flops(config, name, unbounded_of, tokens) * whole
  again = 0.0 if config.run.remat in ("none", "dots") else 1.0
  mixing = 0.0 if config.run.remat == "none" else 1.0
  # The backward pass of a fused kernel computes the scores again: five products instead of four.
  return (
    parts["weights"] * (3 + again)
    + parts["head"] * (4 if head_again else 3)
    + attention * (3.5 + mixing)
    + parts["memory"] * (3 + mixing)
    - sum(_frozen_flops(config, part))
  )


def forward_flops(config: ModelConfig, tokens: int) -> dict[str, float]:
  """One token forward, all layers, by kind: weights, head, attention, memory."""
  c = config
  return {
    "weights": c.layers * _layer_flops(c),
    "head": _head_flops(c),
    "attention": sum(_attention_flops(c, *system, tokens) for system in c.by_system.items()),
    "memory": sum(
      float(MIXERS[name].memory_flops(own, _layer_flops(c))) for name, own in c.by_system.items()
    ),
  }


def _attention_flops(c: ModelConfig, name: str, own: ModelConfig, tokens: int) -> float:
  """Scores, and weighted values, in the layers of one system."""
  return 4.0 * c.heads * c.head_dim * _pairs(own, tokens, c.layers_of(name))


def _layer_flops(c: ModelConfig) -> float:
  """One token through a layer's weights, and their adapters."""
  sizes = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
  adapters = c.adapters.rank * sum(c.width + size for size in (*sizes, c.heads * c.head_dim))
  return _projection_flops(c) + _ffn_flops(c) + 2.0 * adapters


def _projection_flops(c: ModelConfig) -> float:
  return 2.0 * c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)


def _ffn_flops(c: ModelConfig) -> float:
  return 2.0 * c.width * c.ffn * (3 if c.gated_ffn else 2)


def _head_flops(c: ModelConfig) -> float:
  return 2.0 * c.vocab_size * c.width


def _frozen_flops(c: ModelConfig, part: str) -> tuple[float, ...]:
  """One token forward through each kind of weights that is not trained."""
  if part == "all":
    return ()
  frozen = (_head_flops(c), c.layers * _ffn_flops(c))
  return frozen if part == "attention" else (*frozen, c.layers * _projection_flops(c))


def _pairs(c: ModelConfig, tokens: int, numbers: tuple[int, ...]) -> float:
  """The keys that a query attends to in all layers: the mean over a causal sequence.

  Args:
    c: the model of one system.
    tokens: T.
    numbers: the numbers of its layers, from 0, in the whole model.
  """
  all_of_it = (_seen(c, tokens) + 1) / 2
  if not c.memory.grows or not c.family.window:  # a segment is at most as long as the window
    return c.layers * all_of_it
  window = min(c.family.window, tokens)
  near = window - window * (window - 1) / (2 * tokens)
  every = c.family.global_every
  wide = sum((layer + 1) % every == 0 for layer in numbers) if every else 0
  return wide * all_of_it + (c.layers - wide) * near


def _seen(config: ModelConfig, tokens: int) -> int:
  """The most keys that a query attends to."""
  return tokens if config.memory.grows else min(tokens, config.segment_length)
