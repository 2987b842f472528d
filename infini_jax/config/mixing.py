"""The stages of a mixture: from a given batch on, its stores have other weights."""

import math
from typing import NamedTuple

from infini_jax.config.bounds import InputError
from infini_jax.config.schema import Config

FORM = "write STEP=WEIGHT:WEIGHT, a weight for each store, such as 1000=1:3"


class MixStage(NamedTuple):
  """The weights of the stores from batch `first` on."""

  first: int
  weights: tuple[float, ...]  # in the order of the stores; 0: nothing of this one


def mix_stages(config: Config) -> tuple[MixStage, ...]:
  """The stages of `data.stages`.

  Raises:
    InputError: a stage is no step with weights, or their steps do not increase.
  """
  made: list[MixStage] = []
  for text in config.data.stages:
    step, _, written = text.partition("=")
    try:
      stage = MixStage(int(step), tuple(float(weight) for weight in written.split(":")))
    except ValueError:
      raise InputError(f"config.data.stages={text!r}: {FORM}") from None
    if not all(0 <= weight < math.inf for weight in stage.weights) or not any(stage.weights):
      raise InputError(
        f"config.data.stages={text!r}: weights are 0 or more, and one of them is above 0"
      )
    if stage.first <= (made[-1].first if made else -1):
      raise InputError(
        f"config.data.stages={text!r}: its step must be above that of the stage before, and 0 or "
        f"more; put the stages in order"
      )
    made.append(stage)
  return tuple(made)


def check_mixing(config: Config) -> None:
  """Raises InputError, with the remedy, if the stages of a mixture are wrong or have no mixture."""
  if not mix_stages(config):
    return
  if not config.data.path.startswith("mix:"):
    raise InputError(
      f"config.data.stages={config.data.stages} with config.data.path={config.data.path!r}: stages "
      f"are of a mixture; set config.data.path=mix:STORE=WEIGHT,... or config.data.stages=()"
    )
  if config.task.kind.asks and not config.task.text_lanes:
    raise InputError(
      f"config.data.stages={config.data.stages} with config.task.name={config.task.name!r}: no "
      f"lane reads documents; set config.task.text_lanes or config.data.stages=()"
    )
  if config.train.rollout:
    raise InputError(
      f"config.data.stages={config.data.stages} with config.train.rollout={config.train.rollout}: "
      f"each of its lengths begins with batch 0; set one of them ()"
    )
