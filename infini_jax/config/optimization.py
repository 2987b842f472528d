"""The fields of the optimizer, where the decay of its learning rate begins, and their checks."""

import dataclasses
from typing import ClassVar

from infini_jax.config.bounds import InputError, Where, above, at_least, choice

OPTIMIZERS = ("adamw", "adafactor", "muon", "lion")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
SHAPES = ("sqrt", "linear", "cosine")
MEANS = ("b1", "b2", "momentum", "ema")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The rule of an update, and its learning rate at each step: docs/optimizers.md."""

  where: ClassVar[Where] = {
    "optimizer.schedule=wsd": "decay_steps decay_shape",
    "optimizer.schedule=cosine|linear|wsd": "final_fraction",
    "optimizer.name=muon": "momentum",
    "memory.gated": "gate_learning_rate",
  }

  name: str = choice("adamw", OPTIMIZERS)  # the gates have Adam with each of them
  learning_rate: float = above(0, 1e-3)  # the peak, after warm-up
  schedule: str = choice("cosine", SCHEDULES)  # of the rate; wsd: warm-up, stable, decay
  warmup_steps: int = at_least(0, 100)
  decay_steps: int = at_least(0, 0)  # wsd: the last steps, in which the rate decays
  decay_shape: str = choice("sqrt", SHAPES)  # wsd: how; sqrt: by the root of the steps
  final_fraction: float = at_least(0, 0.1)  # a decay ends at this share of the peak
  b1: float = at_least(0, 0.9)
  b2: float = at_least(0, 0.95)
  momentum: float = at_least(0, 0.95)  # muon: of its matrices, instead of b1 and b2
  eps: float = above(0, 1e-8)
  weight_decay: float = at_least(0, 0.1)  # of which groups: section weight_decay
  clip_norm: float = at_least(0, 1.0)  # for the norm of the whole gradient; 0: no clipping
  gate_learning_rate: float = above(0, 0.01)  # the peak for gates, with the same schedule
  ema: float = at_least(0, 0.0)  # decay of a moving average of the parameters; 0: off


@dataclasses.dataclass(frozen=True)
class WeightDecayConfig:
  """The weight decay of each group of parameters, in multiples of `optimizer.weight_decay`."""

  where: ClassVar[Where] = {"optimizer.weight_decay": "*", "memory.gated": "gates"}

  matrices: float = at_least(0, 1.0)  # of the layers
  embeddings: float = at_least(0, 1.0)  # the embedding, the head, and those of summaries
  vectors: float = at_least(0, 0.0)  # norms and biases
  gates: float = at_least(0, 0.0)


def decay_start(o: OptimizerConfig, steps: int) -> int:
  """The steps before the learning rate decays, in a run of `steps`.

  The rates of these steps do not depend on the length of the run.
  """
  if o.schedule == "constant":
    return steps
  return steps - o.decay_steps if o.schedule == "wsd" else o.warmup_steps


def check_optimizer(o: OptimizerConfig, steps: int) -> None:
  """Raises InputError, with the remedy, if settings of the optimizer contradict each other."""
  for name in MEANS:
    if (value := getattr(o, name)) >= 1:
      raise InputError(
        f"config.optimizer.{name}={value}: must be below 1, because at 1 the mean never changes"
      )
  given = f"config.optimizer.decay_steps={o.decay_steps}"
  if o.schedule != "wsd":
    if o.decay_steps:
      raise InputError(
        f"{given} with config.optimizer.schedule={o.schedule!r}: only 'wsd' has them; set that, or "
        f"config.optimizer.decay_steps=0"
      )
    return
  if not o.decay_steps:
    raise InputError(
      f"{given} with config.optimizer.schedule='wsd': give the steps of the decay, for example "
      f"{max(1, steps // 5)} of config.train.steps={steps}; or set config.optimizer.schedule="
      f"'constant'"
    )
  if o.decay_steps + o.warmup_steps > steps:
    raise InputError(
      f"{given} and config.optimizer.warmup_steps={o.warmup_steps} are more than "
      f"config.train.steps={steps}: set config.optimizer.decay_steps to at most "
      f"{max(1, steps - o.warmup_steps)}, or train for longer"
    )
