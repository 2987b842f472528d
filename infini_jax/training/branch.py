"""A run that continues from a checkpoint of another run, in a workdir of its own.

The state, the vocabulary, the store and the position in the data are copied. Only what follows the
checkpoint may differ: the length of the run, and the decay of its learning rate. So the new run
equals, to the bit, one that was planned like this from the start.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import Config, InputError, decay_start, difference
from infini_jax.files import atomic_folder, write_json
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import FILE as METRICS
from infini_jax.runs.workdir import ORIGINAL, Workdir, alone
from infini_jax.training.guard import FILE as PASSED_OVER

FILE = "branch.json"  # in the new workdir: the run and the step
AFTER = ("schedule", "decay_steps", "decay_shape", "final_fraction")  # fields that may differ


class Branch(NamedTuple):
  """A checkpoint of a run; without a step the newest."""

  run: str
  step: int | None = None

  def config(self) -> Config:
    """The config of the run, the default of a branch.

    Raises:
      InputError: there is no run.
    """
    return Workdir(self.run, "--branch").config()


def branch_of(run: str | None, step: int | None) -> Branch | None:
  """The branch of a command; None without one.

  Raises:
    InputError: a step without a run.
  """
  if run is not None:
    return Branch(run, step)
  if step is not None:
    raise InputError(
      f"--step={step} without --branch=RUN: a run continues from its newest checkpoint; leave it "
      f"out"
    )
  return None


def begin_branch(config: Config, path: str, branch: Branch) -> None:
  """Makes the workdir of a branch, completely or not at all, unless it is there already.

  Args:
    config: the config of the new run.
    path: its workdir.
    branch: where it begins.

  Raises:
    InputError: there is no such run or checkpoint, the config differs in more than its decay, the
      checkpoint is of a step in a decay, the workdir holds another run, or another process is
      writing it.
  """
  there, here = Workdir(branch.run, "--branch"), Workdir(path)
  own = branch.config()
  if _is_begun(here.path, there.path, branch.step):
    return
  kept = {name: getattr(own.optimizer, name) for name in AFTER}
  if found := difference(own, config.with_fields(optimizer=kept)):
    raise InputError(
      f"--branch={branch.run}: a branch has the config of its run, except for train.steps and the "
      f"decay ({found}): set the field back, or start a new run"
    )
  with Checkpoints(there) as saved:
    step = saved.chosen(branch.step)
  if step > (last := decay_start(own.optimizer, own.train.steps)):
    raise InputError(
      f"--branch={branch.run}: the rates up to step {step} depend on its length, because they "
      f"decay from step {last} on; choose a checkpoint up to there by --step"
    )
  schedule, steps = config.optimizer.schedule, config.train.steps
  if step > (first := decay_start(config.optimizer, steps)):
    remedy = "set it to 'wsd', and config.optimizer.decay_steps"
    if schedule == "wsd":
      remedy = f"set config.train.steps={steps} to {steps + step - first} or more"
    raise InputError(
      f"config.optimizer.schedule={schedule!r}: the decay would begin at step {first}, before step "
      f"{step} of --branch={branch.run}: {remedy}"
    )
  with alone(atomic_folder(here.path), here.path) as partial:
    _copy(there, config, step, partial)


def _copy(there: Workdir, config: Config, step: int, new: Path) -> None:
  """Writes the workdir of a branch, with copies of all that it needs of the run."""
  for folder in (there.tokenizer, there.path / ORIGINAL, there.store):
    if folder.exists():
      shutil.copytree(folder, new / folder.name)
  checkpoint = Path("checkpoints", str(step))
  shutil.copytree(there.path / checkpoint, new / checkpoint)
  if (there.path / METRICS).exists():
    shutil.copyfile(there.path / METRICS, new / METRICS)  # training removes what comes later
  if (there.path / PASSED_OVER).exists():
    parts = json.loads((there.path / PASSED_OVER).read_text())
    write_json(new / PASSED_OVER, [part for part in parts if part[0] <= step])
  write_json(new / FILE, {"run": str(there.path), "step": step})
  there.copy_run(config, new)


def _is_begun(here: Path, there: Path, step: int | None) -> bool:
  """Whether the workdir holds this branch already."""
  if not here.exists() or not any(here.iterdir()):
    return False
  try:
    content = json.loads((here / FILE).read_text())
    run, first = content["run"], content["step"]
  except (OSError, ValueError, KeyError, TypeError):
    run = first = None
  if run != str(there) or step not in (None, first):
    what = f"a branch of {run}, step {first}" if run else "no branch"
    raise InputError(f"--workdir={here}: holds {what}; name a new folder")
  return True
