"""The messages when a training continues, and when it ends."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import Config
from infini_jax.data import Store
from infini_jax.tasks import Dataset
from infini_jax.training.schedule import make_schedule

NOTICEABLE = 1e-3  # the smallest relative change of the rate that is reported


def tell_rates(config: Config, step: int, logged: dict[str, Any], console: Console) -> None:
  """Prints a line if a new value of `train.steps` changes the learning rates at this step.

  Args:
    config: the config of the run.
    step: the step from which the run continues.
    logged: the last training line of the metrics, of that step or an earlier one.
    console: for the line.
  """
  o, share = config.optimizer, make_schedule(config, 1.0)
  before = logged.get("learning_rate", 0.0) / o.learning_rate
  if not before or step >= config.train.steps:
    return
  if abs(float(share(logged["step"] - 1)) / before - 1) < NOTICEABLE:
    return
  rates = {"the learning rate goes": o.learning_rate}
  if config.model.memory.gated:
    rates["that of the gates"] = o.gate_learning_rate
  after = float(share(step))
  said = (f"{name} from {peak * before:.3g} to {peak * after:.3g}" for name, peak in rates.items())
  console.print(
    f"config.train.steps={config.train.steps} moves the decay of the rates: after step {step} "
    f"{', '.join(said)}",
    soft_wrap=True,
  )


def tell_end(
  config: Config, path: str, dataset: Dataset, step: int, loss: float | None, console: Console
) -> None:
  """Prints a line with the step at which a training ended, and the next command.

  Args:
    config: the config of the run.
    path: the workdir, as it was typed.
    dataset: the training data.
    step: the step that was saved last.
    loss: the loss of that step, if it is known.
    console: for the line.
  """
  steps, where = config.train.steps, f"saved in {Path(path) / 'checkpoints' / str(step)}"
  saved = f"step {step}, {where}" if step else f"step {step}"
  said = [f"stopped at {saved}" if step < steps else saved]
  if step > steps:
    said.insert(0, f"config.train.steps={steps}: nothing to do")
  if loss is not None:
    said.append(f"loss {loss:.4f}")
  if step < steps:
    said.append("the same command continues from there")
  else:
    said.append(f"next: {_next(path, dataset, config)}")
  console.print("; ".join(said), soft_wrap=True, highlight=False)


def _next(path: str, dataset: Dataset, config: Config) -> str:
  """The next command: an evaluation, or text generation if no documents are held out."""
  run = shlex.quote(f"--workdir={path}")
  if isinstance(dataset, Store) and not len(dataset.split(config.evaluation.split).tokens):
    return f'infini-jax generate {run} --prompt="Once"'
  return f"infini-jax eval {run}"
