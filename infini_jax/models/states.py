"""What every state has, whichever memory systems the layers have."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.models.mixers import MIXERS, Mixer
from infini_jax.ops import memory


def reserve(config: ModelConfig, state: Any, tokens: int) -> Any:
  """Room for `tokens` more, in the arrays of a state or stream that grow."""
  return _each(config, state, lambda name, part: MIXERS[name].reserve(part, tokens))


def has_one_size(config: ModelConfig) -> bool:
  """Whether no array of the state ever needs more room."""
  return all(MIXERS[name].reserve is Mixer.reserve for name in config.by_system)


def auxiliary(config: ModelConfig, state: Any) -> jax.Array | float:
  """The mixers' own loss, from the state after a chunk; mean over all layers and lanes."""
  if not config.pattern:
    return MIXERS[config.mixer].auxiliary(state)
  losses = (
    MIXERS[name].auxiliary(state[name]) * (own.layers / config.layers)
    for name, own in config.by_system.items()
  )
  return sum(losses, 0.0)


def of_microbatch(config: ModelConfig, microbatches: int) -> ModelConfig:
  """The model for one of several microbatches, whose losses are summed.

  A loss that a mixer adds by itself is a mean over the tokens that it sees. Its weight is divided,
  so that the sum is the mean over the whole batch.
  """
  if microbatches == 1:
    return config

  def section(one):
    weight = one.write_penalty
    return dataclasses.replace(one, write_penalty=weight / microbatches) if weight else one

  sections = config.memory.systems if config.pattern else (config.memory,)
  return dataclasses.replace(config, memory=tuple(map(section, sections)))


def fast_forward(config: ModelConfig, before: Any, after: Any, times_B: jax.Array) -> Any:
  """The state as if what was read between two states had been read `times_B` times.

  Args:
    config: the model; it has one memory that is a sum over the text, and no other.
    before: the earlier state.
    after: the later one.
    times_B: of each lane.
  """
  forward = lambda x, y: jax.vmap(memory.fast_forward, (0, 0, None))(x, y, times_B)
  if not config.pattern:
    return forward(before, after)
  kept = lambda x, y: forward(x, y) if jax.tree.leaves(y) else y
  return {name: kept(before[name], part) for name, part in after.items()}


def with_memory_of(config: ModelConfig, state: Any, other: Any) -> Any:
  """A state whose memories are those of another state; caches of the whole text stay."""
  if not config.pattern:
    return other
  own = config.by_system
  return {name: state[name] if own[name].memory.grows else other[name] for name in state}


def held_L(model: ModelConfig) -> np.ndarray | None:
  """The layers whose memory is held empty in an ablation; None: all that have a state."""
  if not (model.pattern and model.memory.grows):
    return None
  return np.array(model.memory.ablated(model.layers))


def _each(config: ModelConfig, state: Any, f: Callable[[str, Any], Any]) -> Any:
  if not config.pattern:
    return f(config.mixer, state)
  return {name: f(name, part) for name, part in state.items()}
