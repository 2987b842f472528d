"""Real processes, joined over the loopback interface, each with its own CPU devices."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.compiling import QUICKLY

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def processes():
  """Starts processes, and ends them after the test."""
  started = []

  def start(command, number, count, devices, port, **environ):
    env = {
      "PATH": "/usr/bin:/bin",
      "JAX_PLATFORMS": "cpu",
      "INFINI_PEER_TIMEOUT": "15",
      "INFINI_JOIN_TIMEOUT": "100",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count} {QUICKLY}",
      **environ,
    }
    if count > 1 and port:
      env |= {
        "INFINI_COORDINATOR": f"127.0.0.1:{port}",
        "INFINI_PROCESSES": str(count),
        "INFINI_PROCESS": str(number),
      }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started.append(
      subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, text=True, **pipes)
    )
    return started[-1]

  yield start
  for process in started:
    if process.poll() is None:
      process.kill()
    process.communicate()


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
  """A folder with a corpus and two config files for it."""
  folder = tmp_path_factory.mktemp("job")
  tiny.write_corpus(folder / "corpus")
  fields = {"steps": 6, "checkpoint_every": 3, "keep_checkpoints": 2, "eval_every": 6}
  meshes = {
    "lanes": {"data": -1},
    "seq": {"data": 1, "seq": 2, "tensor": 2},
    "dcn": {"dcn": 2, "data": 1, "fsdp": 2},
  }
  for name, mesh in meshes.items():
    sections = {
      **tiny.RUN,
      "model": {**tiny.RUN["model"], "rule": "delta"},
      "data": {**tiny.RUN["data"], "path": str(folder / "corpus")},
      "train": {**tiny.RUN["train"], **fields},
      "mesh": mesh,
    }
    (folder / f"{name}.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  return folder


def is_gloos(line):
  """Whether Gloo printed the line. Its threads may cut one; the rest is the number of peers."""
  return "[Gloo]" in line or "peer ranks" in line or line.strip().isdigit()


@pytest.fixture
def command(job, processes):
  """Runs train or eval in several processes to the end, or only starts them."""

  def run(script, workdir, count, *more, config="lanes", devices=8, wait=True):
    port = free_port()
    parts = (f"{script}.py", f"--config={job / config}.py", f"--workdir={job / workdir}", *more)
    all_ = [processes(parts, i, count, devices, port) for i in range(count)]
    if not wait:
      return all_
    outputs = [process.communicate(timeout=900) for process in all_]
    for number, (process, (out, err)) in enumerate(zip(all_, outputs, strict=True)):
      assert process.returncode == 0, err
      lines = filter(str.strip, out.splitlines())
      spoken = [line for line in lines if not is_gloos(line)]
      assert number == 0 or not (spoken or err), "one process speaks"
    return outputs

  return run


@pytest.fixture
def pair(job, processes):
  """Starts two processes of train or eval, each with its own flags."""

  def start(script, *flags):
    port = free_port()
    parts = (f"{script}.py", f"--config={job / 'lanes'}.py", f"--workdir={job / 'pair'}")
    other = lambda flag: any(own.startswith(flag.partition("=")[0] + "=") for own in flags[1])
    first = (*parts, *flags[0])
    second = (*(part for part in parts if not other(part)), *flags[1])
    return [processes(command, i, 2, 2, port) for i, command in enumerate((first, second))]

  return start
