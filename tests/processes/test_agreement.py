"""Processes that were not started alike all report it, and none hangs."""

import json
import os
import signal
import socket
import time

import pytest

from infini_jax import cli
from infini_jax.processes import agreement
from infini_jax.runs.workdir import Workdir
from tests import tiny
from tests.processes.conftest import free_port

ALIKE = """
import argparse, dataclasses, json, os, sys, time, types
from pathlib import Path
from infini_jax import processes
from infini_jax.config import Config, InputError
from infini_jax.processes import agreement, check_same_inputs
number, folder, cases = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
assert processes.start(processes.settings(os.environ))

def asked(call, *arguments):
  started, line = time.monotonic(), ""
  try:
    call(*arguments)
  except InputError as error:
    line = str(error)
  print(json.dumps([line, time.monotonic() - started]), flush=True)

for case in cases:
  args = argparse.Namespace(command="train", run=len, typed=str(number), workdir="run", task=None)
  config = Config()
  for name, values in case.items():
    if name.startswith("--"):
      setattr(args, name[2:], values[number])
    elif name.isupper():
      os.environ[name] = values[number]
    else:
      section, field = name.split(".")
      config = config.with_fields(**{section: {field: values[number]}})
  asked(agreement.check_alike, args, config)

# One path on two file systems, and a corpus that one of them has in other words.
def source(text):
  return types.SimpleNamespace(fingerprint=text, tokenizer=types.SimpleNamespace(fingerprint="t"))

asked(check_same_inputs, folder, "no run", [source("a")])
asked(check_same_inputs, folder, "no run", [source("a"), source(f"b{number}")])
asked(check_same_inputs, folder, f"run abc at step {3 * number}", [source("a")])

# One of them refuses its own inputs while the other waits.
if number == 1:
  time.sleep(1)
  processes.give_up(2, why="config.train.steps=0: must be more than 0")
try:
  agreement.check_alike(args, config)
except processes.PeerStopped as error:
  print(json.dumps([str(error), error.status]), flush=True)
processes.give_up(2)
"""
# The flags of two processes, and the messages about them.
CASES = [
  ({}, ""),
  ({"train.steps": [8, 10]}, "config.train.steps: process 0 has 8, process 1 has 10"),
  (
    {"optimizer.learning_rate": [0.1, 0.2]},
    "config.optimizer.learning_rate: process 0 has 0.1, process 1 has 0.2",
  ),
  (
    {"mesh.fsdp": [1, 2], "data.lanes": [8, 4]},
    "config.data.lanes: process 0 has 8, process 1 has 4; "
    "config.mesh.fsdp: process 0 has 1, process 1 has 2",
  ),
  (
    {"train.seed": [0, 1], "data.path": ["a", "b"], "model.width": [8, 16], "data.lanes": [1, 2]},
    "config.model.width: process 0 has 8, process 1 has 16; config.data.path: process 0 has 'a', "
    "process 1 has 'b'; config.data.lanes: process 0 has 1, process 1 has 2; and 1 more",
  ),
  (
    {"data.prefetch": [1, 2], "run.compilation_cache": ["", "c"], "--process": ["0", "1"]},
    "",
  ),
  ({"--command": ["train", "eval"]}, "the command: process 0 has train, process 1 has eval"),
  ({"--task": [None, "gates"]}, "--task: process 0 has None, process 1 has gates"),
  ({"--processes": ["2", "3"]}, "--processes: process 0 has 2, process 1 has 3"),
  (
    {"--workdir": ["/a", "/b"]},
    "--workdir: process 0 has /a, process 1 has /b",
  ),
  (
    {"XLA_FLAGS": ["--xla_cpu_enable_fast_math=true", "--xla_dump_to=there"]},
    "XLA_FLAGS: process 0 has --xla_cpu_enable_fast_math=true, process 1 has ",
  ),
  ({"XLA_FLAGS": ["", "--xla_dump_to=there"]}, ""),
]


@pytest.mark.slow
def test_every_difference_is_named_on_every_process(processes, tmp_path):
  """And settings that may differ are ignored. One pair of processes tests all of it."""
  port, cases = free_port(), json.dumps([case for case, _ in CASES])
  command = lambda i: ("-c", ALIKE, str(i), str(tmp_path), cases)
  both = [processes(command(i), i, 2, 2, port) for i in range(2)]
  outputs = [process.communicate(timeout=100) for process in both]
  assert [process.returncode for process in both] == [2, 2], outputs
  lines = [[json.loads(x) for x in out.splitlines() if x[:1] == "["] for out, _ in outputs]
  expected = [f"{line}; {agreement.REMEDY}" if line else "" for _, line in CASES]
  expected += [
    "",
    "the fingerprint of corpus 2: process 0 has b0, process 1 has b1; let all hosts read the same "
    "config.data.path",
    f"{tmp_path}: process 0 has run abc at step 0, process 1 has run abc at step 3; --workdir must "
    f"be on a file system of all hosts",
  ]
  for found in lines:
    assert [line for line, _ in found[: len(expected)]] == expected
    assert max(seconds for _, seconds in found[: len(expected)]) < 20
  assert lines[0][-1] == ["process 1 stopped: config.train.steps=0: must be more than 0", 2]
  assert "Traceback" not in outputs[0][1] + outputs[1][1]


def test_one_changed_line_is_another_code(tmp_path):
  (tmp_path / "a.py").write_text("x = 1")
  before = agreement._digest(tmp_path)
  assert agreement._digest(tmp_path) == before
  (tmp_path / "a.py").write_text("x = 2")
  assert agreement._digest(tmp_path) != before


def test_two_processes_0_do_not_wait_for_the_others(processes):
  with socket.socket() as other:
    other.bind(("", 0))
    other.listen()
    port = other.getsockname()[1]
    code = "import os; from infini_jax import processes\n"
    code += "processes.start(processes.settings(os.environ))"
    _, err = processes(("-c", code), 0, 2, 2, port).communicate(timeout=60)
  assert f"--coordinator=127.0.0.1:{port}: port {port} cannot be opened" in err


@pytest.mark.slow
@pytest.mark.parametrize(
  "script,flags,said",
  [
    ("train", ("--config.train.steps=9",), "config.train.steps: process 0 has 6, process 1 has 9"),
    ("train", ("--config.train.steps=0",), "config.train.steps=0: must be more than 0"),
    ("train", ("--config=none.py",), "none.py: no such file"),
    ("train", ("--workdir=elsewhere",), "--workdir: process 0 has "),
    ("eval", ("--task=gates",), "--task: process 0 has None, process 1 has gates"),
  ],
  ids=str,
)
def test_commands_that_differ_end_at_once(pair, job, script, flags, said):
  if script == "eval":
    Workdir(job / "pair").claim(tiny.config(job / "corpus"), "a corpus")
  both = pair(script, (), flags)
  outputs = [process.communicate(timeout=60) for process in both]
  assert [process.returncode for process in both] == [2, 2], outputs
  for _, err in outputs:
    (line,) = [line for line in err.splitlines() if line.startswith("infini-jax")]
    assert said in line and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
  "number, status", [(signal.SIGTERM, cli.STOPPED), (signal.SIGINT, 128 + signal.SIGINT)]
)
def test_a_signal_ends_a_process_that_waits_for_the_others(pair, job, number, status):
  """Process 1 reads a config that takes a long time."""
  (job / "slow.py").write_text(f"import time\ntime.sleep(300)\n{(job / 'lanes.py').read_text()}")
  first, second = pair("train", (), (f"--config={job / 'slow.py'}",))
  time.sleep(20)
  os.kill(first.pid, number)
  started = time.monotonic()
  first.communicate(timeout=60)
  assert time.monotonic() - started < 10 and first.returncode == status
  second.kill()
