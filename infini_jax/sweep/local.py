"""The runs of a sweep on this machine, one after the other, each a process of its own."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from infini_jax.config import Config
from infini_jax.progress import track
from infini_jax.runs.metrics import read_metrics
from infini_jax.sweep.grid import Combination

TRAIN = (sys.executable, "-u", "-m", "infini_jax.cli", "train")
LOG = "train.log"  # in a run's workdir: what its process printed
STOPPED = 75  # the status of a training that was stopped before its last step
POLL = 0.5  # seconds between two looks at a run
LAST = 4096  # bytes of a log in which its last line is looked for


class Outcome(NamedTuple):
  """How the runs ended, by their names."""

  failed: list[str]
  stopped: list[str]
  told: bool  # the sweep itself was told to stop


def is_finished(workdir: Path, config: Config) -> bool:
  """Whether a run has taken and saved its last step, and its last validation is logged."""
  steps = config.train.steps
  folder = workdir / "checkpoints"
  saved = [int(f.name) for f in folder.glob("*") if f.name.isdecimal()]
  if max(saved, default=0) < steps:
    return False
  validated = [line["step"] for line in read_metrics(workdir, "validation")]
  return not config.train.eval_every or max(validated, default=0) >= steps


def run_all(
  folder: Path, runs: Sequence[Combination], arguments: Sequence[str], console: Console
) -> Outcome:
  """Trains every run that is not finished. One that fails does not end the others.

  SIGINT and SIGTERM are passed on to the training, which saves its step; no other one is started.

  Args:
    folder: the folder of the sweep.
    runs: what to train.
    arguments: of the command: the config file, and the fields that are the same in all runs.
    console: for a line about each run.
  """
  failed, stopped, say = [], [], _say(console)
  with _Signals() as signals:
    for i, run in enumerate(runs, 1):
      if signals.told:
        break
      workdir, what = folder / run.name, f"run {i} of {len(runs)}, {run.name}"
      if is_finished(workdir, run.config):
        say(f"{what}: finished before")
        continue
      say(f"{what}: {workdir / LOG}")
      began = time.perf_counter()
      with track(console, f"run {i}", run.config.train.steps) as advance:
        look = lambda run=run, workdir=workdir, advance=advance: _show(run, workdir, advance)
        status = _train(workdir, [*arguments, *run.flags], signals, look)
      seconds = f"{time.perf_counter() - began:,.0f} s"
      if status == 0:
        say(f"{what}: {_standing(workdir)}, {seconds}")
      elif status == STOPPED or signals.told:  # while it compiles, a signal ends it at once
        stopped.append(run.name)
        say(f"{what}: stopped at {_standing(workdir)}")
      else:
        failed.append(run.name)
        say(f"{what}: failed with status {status} after {seconds}: {_last_line(workdir / LOG)}")
  return Outcome(failed, stopped, signals.told)


def _train(workdir: Path, arguments: Sequence[str], signals: "_Signals", look: Callable) -> int:
  """Trains one run; returns the exit status of its process."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / LOG, "ab") as log:
    # In a session of its own, a process gets only the signals that are passed on: a second one
    # would end it before it has saved.
    process = subprocess.Popen(
      [*TRAIN, *arguments, f"--workdir={workdir}"],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    with signals.passed_on(process):
      while True:
        try:
          return process.wait(POLL)
        except subprocess.TimeoutExpired:
          look()


class _Signals:
  """Passes SIGINT and SIGTERM on to the process of a run, as SIGTERM."""

  def __init__(self):
    self.told = False
    self._process: subprocess.Popen | None = None

  def __enter__(self) -> "_Signals":
    self._before = {n: signal.signal(n, self._tell) for n in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *error: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  @contextlib.contextmanager
  def passed_on(self, process: subprocess.Popen) -> Iterator[None]:
    """Passes signals on to this process in the body, also one that came just before it."""
    self._process = process
    if self.told:
      process.terminate()
    try:
      yield
    finally:
      self._process = None

  def _tell(self, *_: Any) -> None:
    self.told = True
    if self._process is not None:
      self._process.terminate()


def _show(run: Combination, workdir: Path, advance: Callable[..., None]) -> None:
  """Shows the last logged step of a run; the very last is printed after the process has ended."""
  lines = read_metrics(workdir)
  if lines and lines[-1]["step"] < run.config.train.steps:
    advance(lines[-1]["step"], f"loss {lines[-1]['loss']:.4f}")


def _standing(workdir: Path) -> str:
  """The last logged step of a run and its loss."""
  lines = read_metrics(workdir)
  return f"step {lines[-1]['step']}, loss {lines[-1]['loss']:.4f}" if lines else "step 0"


def _last_line(log: Path) -> str:
  lines = log.read_bytes()[-LAST:].decode("utf-8", "replace").split("\n")
  return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _say(console: Console) -> Callable[[str], None]:
  return lambda line: console.print(line, soft_wrap=True, highlight=False)
