"""Runs one after the other: what is finished is skipped, and a failure does not end the others.

The trainings are small stand-ins, and `tests/sweep/test_command.py` has real ones.
"""

import io
import json
import os
import signal
import sys
import textwrap
import threading
import time

import pytest
from rich.console import Console

from infini_jax.sweep import local
from infini_jax.sweep.grid import Combination
from tests.tiny import config

# Fails with a seed of 2; with 3 it waits for a signal, and with 6 it is ended by one, as while it
# compiles; else it takes all steps at once.
TRAINING = """
import json, pathlib, signal, sys, time
flags = dict(argument.split("=", 1) for argument in sys.argv[1:])
workdir, seed = pathlib.Path(flags["--workdir"]), int(flags["--config.train.seed"])
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
(workdir / "starts").open("a").write("x")
if seed == 2:
  print("infini-jax train: a mistake; mend it")
  sys.exit(2)
if seed == 6:
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  (workdir / "waits").touch()
  time.sleep(60)
step = 6
if seed == 3 and not (workdir / "checkpoints").exists():
  step = 4
  (workdir / "waits").touch()
  while not told:
    time.sleep(0.01)
(workdir / "checkpoints" / str(step)).mkdir(parents=True)
with (workdir / "metrics.jsonl").open("a") as metrics:
  metrics.write(json.dumps({"kind": "train", "step": step, "loss": 1.5}) + "\\n")
sys.exit(0 if step == 6 else 75)
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """Runs a sweep of seeds; returns its outcome, and what it printed."""
  monkeypatch.setattr(local, "TRAIN", (sys.executable, "-c", textwrap.dedent(TRAINING)))
  monkeypatch.setattr(local, "POLL", 0.02)

  def run(*seeds):
    runs = [
      Combination(f"seed={s}", (f"--config.train.seed={s}",), config(train={"seed": s}))
      for s in seeds
    ]
    out = io.StringIO()
    outcome = local.run_all(tmp_path, runs, [], Console(file=out, width=300))
    return outcome, out.getvalue()

  return run


def starts(tmp_path, seed):
  file = tmp_path / f"seed={seed}" / "starts"
  return len(file.read_text()) if file.exists() else 0


def test_a_failure_is_named_and_the_others_go_on(sweep, tmp_path):
  outcome, said = sweep(1, 2, 4)
  assert outcome == (["seed=2"], [], False)
  assert "run 2 of 3, seed=2: failed with status 2" in said and "a mistake; mend it" in said
  assert "run 3 of 3, seed=4: step 6, loss 1.5000" in said
  outcome, said = sweep(1, 2, 4, 5)
  assert outcome.failed == ["seed=2"] and said.count("finished before") == 2
  assert [starts(tmp_path, seed) for seed in (1, 2, 4, 5)] == [1, 2, 1, 1]


def tell_when(file):
  """Sends SIGTERM to this process when the file is there."""

  def tell():
    while not file.exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=tell).start()


def test_a_run_that_a_signal_ends_at_once_has_not_failed(sweep, tmp_path):
  tell_when(tmp_path / "seed=6" / "waits")
  assert sweep(6, 1)[0] == ([], ["seed=6"], True) and starts(tmp_path, 1) == 0


def test_a_signal_stops_the_run_at_a_saved_step_and_the_same_sweep_goes_on(sweep, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  tell_when(tmp_path / "seed=3" / "waits")
  outcome, said = sweep(3, 1)
  assert outcome == ([], ["seed=3"], True) and "stopped at step 4" in said
  assert starts(tmp_path, 1) == 0, "no other run is started"
  assert signal.getsignal(signal.SIGTERM) is before
  outcome, _ = sweep(3, 1)
  assert outcome == ([], [], False) and starts(tmp_path, 3) == 2


def test_a_run_is_finished_after_its_last_save_and_its_last_validation(tmp_path):
  c = config(train={"steps": 6})
  assert not local.is_finished(tmp_path, c)
  (tmp_path / "checkpoints" / "6.tmp").mkdir(parents=True)
  (tmp_path / "checkpoints" / "5").mkdir()
  assert not local.is_finished(tmp_path, c)
  (tmp_path / "checkpoints" / "6").mkdir()
  assert local.is_finished(tmp_path, c)
  assert not local.is_finished(tmp_path, config(train={"steps": 7}))
  validated = config(train={"steps": 6, "eval_every": 3})
  assert not local.is_finished(tmp_path, validated)
  (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "validation", "step": 6}) + "\n")
  assert local.is_finished(tmp_path, validated)
