"""Bad steps: skipped, counted, and if there are too many in a row, left behind.

A step is bad if its loss, a gradient or the memory is not finite, or, with `guard.spike`, if the
norm of its gradient is far above its running mean. The update then changes nothing but the count of
the steps (`training.step`). After `guard.in_a_row` bad steps training goes back to the newest
checkpoint and passes over the batches since. After `guard.returns` times, over all restarts of the
run, it stops.
"""

import faulthandler
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax import processes
from infini_jax.config import Config
from infini_jax.data.lanes.documents import ALL, Batch, Rows
from infini_jax.files import write_json
from infini_jax.training.health import diagnosis

FILE = "passed_over.json"
STDERR = 2  # the file descriptor: sys.stderr of a notebook has none
WATCHED = 10  # seconds between two looks of the thread that watches for a hang
SHOWN = 3  # documents that a line names


class Hang:
  """Ends the process with status 1 if nothing happens for too long, and prints all its stacks.

  A step can wait forever for a device, another process, or a file system. A compilation is not
  watched. Use it in a `with` statement.

  Args:
    seconds: the longest time between two signs of life; 0 watches nothing.
  """

  def __init__(self, seconds: int):
    self._seconds = seconds
    self._since: float | None = None  # the last sign of life; None: nothing is watched
    self._over = threading.Event()

  def alive(self) -> None:
    """A sign of life."""
    self._since = time.monotonic()

  def rest(self) -> None:
    """Stops watching until the next sign of life."""
    self._since = None

  def __enter__(self) -> "Hang":
    if self._seconds:
      threading.Thread(target=self._watch, name="hang", daemon=True).start()
    return self

  def __exit__(self, *error: Any) -> None:
    self._over.set()

  def _watch(self) -> None:
    every = min(WATCHED, self._seconds / 4)
    looked = time.monotonic()
    while not self._over.wait(every):
      before, looked, since = looked, time.monotonic(), self._since
      if since is None:
        continue
      if looked - before > 3 * every:  # the whole process stood still, as after Ctrl-Z
        self._since = looked
      elif looked - since > self._seconds:
        faulthandler.dump_traceback(STDERR)
        processes.give_up(
          1,
          f"no step, chunk of a validation or save was done for {self._seconds} s "
          f"(config.guard.hang); the stacks of all threads are above. The same command continues "
          f"from the newest checkpoint",
          together=False,
          why=f"it made no progress for {self._seconds} s",
        )


class PassedOver:
  """Which batches are passed over: the batch of a step is its number and what was passed before.

  Args:
    folder: the folder of the run; a run that continues finds the same batches there.
  """

  def __init__(self, folder: Path):
    self._file = folder / FILE
    self._parts: list[list[int]] = []  # from this step on, so many batches more
    if self._file.exists():
      self._parts = [[int(step), int(count)] for step, count in json.loads(self._file.read_text())]

  def batch_of(self, step: int) -> int:
    """The number of the batch that step `step` + 1 trains on."""
    return step + sum(count for first, count in self._parts if first <= step)

  def add(self, step: int, until: int, write: bool) -> None:
    """From step `step` on, the batches begin with the one that step `until` would have had.

    Args:
      step: the step that training goes back to.
      until: the number of steps that were taken.
      write: whether this process writes the file.
    """
    self._parts.append([step, self.batch_of(until) - self.batch_of(step)])
    if write:
      write_json(self._file, self._parts)

  @property
  def returns(self) -> int:
    """How often training went back, in all processes of the run."""
    return len(self._parts)

  def __bool__(self) -> bool:
    return bool(self._parts)


class Passing:
  """Lanes whose batch k is the one that `PassedOver` gives to step k."""

  def __init__(self, lanes: Any, passed: PassedOver):
    self._lanes, self._passed = lanes, passed

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """The batch of step k + 1."""
    return self._lanes.batch(self._passed.batch_of(k), rows)


class Guard:
  """Counts bad steps.

  Args:
    config: the config of the run.
    lanes: names the documents of a batch, if it can.
    passed: gives the batch of a step.
  """

  def __init__(self, config: Config, lanes: Any, passed: PassedOver):
    self._config, self._lanes, self._passed = config, lanes, passed
    self._in_a_row = 0
    self.goes_back = False  # too many bad steps in a row

  @property
  def in_streak(self) -> bool:
    """Whether the last step was bad. Nothing is saved then, not even at a stop: training can go
    back, and a run that continues meets all bad steps of the streak again, and counts them."""
    return self._in_a_row > 0

  def seen(self, step: int, metrics: dict[str, Any]) -> str:
    """Takes the metrics of a step; returns a line about it if it was bad, or else "".

    Raises:
      FloatingPointError: too many steps in a row were bad, and training may not go back again.
    """
    what = diagnosis(metrics)
    if not what and not bool(np.asarray(metrics["skipped"])):
      self._in_a_row = 0
      return ""
    g = self._config.guard
    self._in_a_row += 1
    norm = float(metrics["grad_norm"])
    what = what or f"gradient norm {norm:g}, more than {g.spike:g} times its mean"
    batch = self._passed.batch_of(step - 1)
    said = f"step {step}: skipped: {what}; batch {batch:,}{self._documents(batch)}"
    if self._in_a_row < g.in_a_row:
      return said
    self._in_a_row, returns = 0, self._passed.returns
    if returns >= g.returns or self._config.train.rollout:
      raise FloatingPointError(
        f"step {step}: {g.in_a_row} bad steps in a row, training went back {returns} times; "
        f"{what}: lower config.optimizer.learning_rate or gate_learning_rate; the checkpoints are "
        f"of good steps (config.guard.returns={g.returns})"
      )
    self.goes_back = True
    return said

  def _documents(self, batch: int) -> str:
    """The first documents of a batch, where the data has documents."""
    if not hasattr(self._lanes, "names"):
      return ""
    names = self._lanes.names(batch)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" of {', '.join(names[:SHOWN])}{more}"
