"""A stop ends a training at any moment: at once before the first step and while XLA compiles."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infini_jax.training.stop_signal import SAID, STOPPED, Stopped, StopSignal
from tests.tiny import CONFIG_FILE

ROOT = Path(__file__).parent.parent.parent
# `busy` is in C and notices no signal, as XLA when it compiles.
CODE = """
import hashlib, os, signal, sys, time
from infini_jax.training.stop_signal import StopSignal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
busy = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
with StopSignal() as stop:
  {before}
  print("ready", flush=True)
  {then}
  print("noted" if stop.is_set() else "not noted", flush=True)
"""
ENDS = "busy()"
NOTES = "[time.sleep(0.05) for _ in range(100) if not stop.is_set()]"


@pytest.mark.parametrize(
  "before, then, signals, status, said",
  [
    ("pass", ENDS, [signal.SIGTERM], STOPPED, SAID),
    ("stop.listen(); stop.end_at_once()", ENDS, [signal.SIGTERM], STOPPED, SAID),
    ("stop.listen()", NOTES, [signal.SIGTERM], 0, "noted"),
    ("stop.listen()", NOTES, [signal.SIGINT], 0, "noted"),
    ("pass", "time.sleep(60)", [signal.SIGINT], -signal.SIGINT, "KeyboardInterrupt"),
    ("stop.end_at_once(); stop.listen()", NOTES, [signal.SIGTERM], 0, "noted"),
    ("stop.listen()", "time.sleep(9); " * 2, [signal.SIGTERM] * 2, -signal.SIGTERM, "ready"),
  ],
  ids=str,
)
def test_a_signal_ends_the_process_at_once_or_is_noted(before, then, signals, status, said):
  code = CODE.format(before=before, then=then)
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
  try:
    assert process.stdout.readline() == "ready\n"
    for number in signals:
      time.sleep(0.1)
      process.send_signal(number)
    since = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - since < 10
  finally:
    process.kill()
    process.communicate()
  assert process.returncode == status, err
  assert said in ("ready\n" + out + err).splitlines()[-1]
  if status == STOPPED:
    assert err == f"infini-jax: {SAID}\n"


def test_the_handlers_of_the_program_come_back():
  before = [signal.getsignal(n) for n in StopSignal.NUMBERS]
  threads = threading.active_count()
  with StopSignal() as stop, pytest.raises(Stopped):
    stop.listen()
    with stop.during_wait(alone=True):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
  assert stop.is_set() and [signal.getsignal(n) for n in StopSignal.NUMBERS] == before
  with StopSignal(), StopSignal() as inner:
    inner.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not inner.is_set() and time.monotonic() < deadline:
      time.sleep(0.01)
    assert inner.is_set()
  assert signal.set_wakeup_fd(-1) == -1
  deadline = time.monotonic() + 5
  while threading.active_count() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= threads


def test_other_threads_change_no_handler():
  before, found = signal.getsignal(signal.SIGTERM), []

  def run():
    with StopSignal() as stop:
      stop.listen()
      found.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [before]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "compile", "validation"])
def test_a_training_is_stopped_in_its_first_seconds_and_goes_on_as_if_it_had_not(
  trained, tmp_path, moment
):
  """Real processes with XLA's optimizations, so that a compilation takes some seconds."""
  c, _, _ = trained
  sections = json.loads(c.to_json())
  sections["model"] |= {"layers": 3}
  sections["mesh"] |= {"data": 1}
  sections["train"] |= {"steps": 2, "eval_every": 1, "eval_documents": 1, "checkpoint_every": 1}
  (tmp_path / "config.py").write_text(CONFIG_FILE.format(sections=sections))
  run = tmp_path / "run"
  command = [sys.executable, "-u", "train.py", f"--config={tmp_path / 'config.py'}"]
  command += [f"--workdir={run}", "--config.run.compilation_cache="]
  env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
  log = tmp_path / "log"

  def start():
    with log.open("w") as out:
      return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)

  reached = {
    "start": lambda: catches_sigterm(process.pid),
    "compile": lambda: "compile ..." in log.read_text(),
    "validation": lambda: (run / "checkpoints" / "1").exists(),  # the save before it compiles
  }[moment]
  process = start()
  try:
    while not reached():
      assert process.poll() is None, log.read_text()
      time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    since = time.monotonic()
    process.wait(60)
  finally:
    process.kill()
  said = log.read_text()
  assert time.monotonic() - since < 10
  assert process.returncode == STOPPED, said
  assert "Traceback" not in said and (SAID in said or "stopped at step" in said), said
  again = start()
  assert again.wait(600) == 0 and "step 2, saved in" in log.read_text(), log.read_text()


def catches_sigterm(pid):
  """Whether a process has a handler for SIGTERM."""
  for line in Path(f"/proc/{pid}/status").read_text().splitlines():
    if line.startswith("SigCgt:"):
      return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
  return False
