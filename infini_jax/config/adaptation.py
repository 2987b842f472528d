"""The adaptation of a trained model: the segment length of each step, and checks of settings."""

import dataclasses
from typing import NamedTuple

from infini_jax.config.bounds import InputError
from infini_jax.config.schema import Config, ModelConfig

ANOTHER_ORDER = 1_000_003  # added to the seed at every stage


class Stage(NamedTuple):
  """The steps from `first` to the start of the next stage; `config` has their segment length."""

  first: int
  config: Config


def stages(config: Config) -> tuple[Stage, ...]:
  """The stages of a run: one, or those of its rollout curriculum.

  A chunk keeps its number of segments, so that it grows with the segment length. Each stage has its
  own seed and begins with batch 0, so every lane begins a document or an example there.
  """
  t, warm = config.train, config.warm
  made = []
  for i, length in enumerate((*t.rollout, config.model.segment_length)):
    first = i * t.rollout_steps
    here = dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, segment_length=length),
      train=dataclasses.replace(t, rollout=(), seed=t.seed + i * ANOTHER_ORDER),
      warm=dataclasses.replace(warm, start_step=max(0, warm.start_step - first)),
    )
    made.append(Stage(first, here))
  return tuple(made) if t.rollout else (Stage(0, config),)


def stage_at(config: Config, k: int) -> Stage:
  """The stage that batch k belongs to."""
  return [stage for stage in stages(config) if stage.first <= k][-1]


def tokens_read(config: Config, step: int) -> int:
  """The tokens of all lanes in the first `step` batches."""
  total, made = 0, stages(config)
  for i, stage in enumerate(made):
    end = made[i + 1].first if i + 1 < len(made) else step
    tokens = config.data.lanes * config.data.segments * stage.config.model.segment_length
    total += tokens * max(0, min(end, step) - stage.first)
  return total


def original(model: ModelConfig) -> ModelConfig:
  """The config of the original model: full attention over its input, and no adapters."""
  none = dataclasses.replace(model.adapters, rank=0)
  return dataclasses.replace(model, mixer="full", pattern=(), adapters=none)


def check_adaptation(config: Config) -> None:
  """Raises InputError, with the remedy, if settings of an adaptation contradict each other."""
  m, t = config.model, config.train
  if t.rollout:
    _check_rollout(config)
  if t.part == "lora" and not m.adapters.rank:
    raise InputError(
      "config.train.part='lora' with config.adapters.rank=0: there are no adapters; set "
      "config.adapters.rank, for example to 8"
    )
  if t.part == "gates" and not m.memory.gated:
    raise InputError(
      f"config.train.part='gates' with config.{m.setting}: it has no gates; set "
      f"config.train.part='all'"
    )
  if t.distill_weight and not t.start_from:
    raise InputError(
      f"config.train.distill_weight={t.distill_weight} without config.train.start_from: set it to "
      f"the run of the original, or the weight to 0"
    )
  if t.distill_weight and config.mesh.seq > 1:
    raise InputError(
      f"config.mesh.seq={config.mesh.seq} with config.train.distill_weight={t.distill_weight}: the "
      f"original's tokens see those of other segments; set config.mesh.seq=1"
    )


def _check_rollout(config: Config) -> None:
  m, t = config.model, config.train
  lengths = (*t.rollout, m.segment_length)
  if not m.memory.any_length:
    raise InputError(
      f"config.train.rollout={t.rollout} with config.{m.setting}: its state depends on "
      f"the segment's length; set config.train.rollout=()"
    )
  if lengths[0] < 1 or any(a >= b for a, b in zip(lengths, lengths[1:], strict=False)):
    raise InputError(
      f"config.train.rollout={t.rollout}: its segments must grow, up to less than "
      f"config.model.segment_length={m.segment_length}"
    )
  if not t.rollout_steps:
    raise InputError(
      f"config.train.rollout={t.rollout} with config.train.rollout_steps=0: give the steps of each"
    )
  if t.steps <= (over := len(t.rollout) * t.rollout_steps):
    raise InputError(
      f"config.train.steps={t.steps} with config.train.rollout={t.rollout}: "
      f"config.model.segment_length={m.segment_length} comes after {over} steps; train for longer, "
      f"or set config.train.rollout_steps lower"
    )
  if config.task.curriculum_steps:
    raise InputError(
      f"config.task.curriculum_steps={config.task.curriculum_steps} with config.train.rollout="
      f"{t.rollout}: examples grow by one of them; set the other 0"
    )
