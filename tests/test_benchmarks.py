"""Every benchmark says what it takes; quick ones run to their end, with tiny shapes."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plan.test_hbm import PROGRAM

ROOT = Path(__file__).parent.parent
NO_COMMAND = {"record", "peer_torch"}  # modules of others
NO_COMMAND |= {"peer_jla"}  # runs in the environment of another project
BENCHMARKS = [f for f in sorted((ROOT / "benchmarks").glob("*.py")) if f.stem not in NO_COMMAND]


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_the_package_is_there(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "infini_jax":
      module = importlib.import_module(node.module)
      for name in (one.name for one in node.names):
        file_of = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
        assert hasattr(module, name) or file_of, f"{file.name}: {node.module} has no {name}"


@pytest.mark.slow
@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_says_what_it_takes(file):
  command = [sys.executable, str(file), "--help"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


TEXTS = ["--config.data.path=docs", "--config.data.tokenizer=bytes"]
TEXTS += ["--config.model.vocab_size=512"]
RUNS = {
  "compile": ([], "trace s"),
  "plan_step": (["--topology=v5e:4x4", "--from=PROGRAM"], "GB"),
  "save": (["--rounds=1", *TEXTS], "whole ms"),
  "loader": (["--seconds=1", *TEXTS], "tokens/s"),
  "peer": (["--alone", "--only=linear", "--tokens=512", "--rounds=1"], "ms a step"),
  "peer decoding": (["--alone", "--decode", "--only=delta", "--rounds=2"], "ms a token"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_to_its_end(tmp_path, name):
  flags, column = RUNS[name]
  (tmp_path / "program.txt").write_text(PROGRAM)
  flags = [flag.replace("PROGRAM", str(tmp_path / "program.txt")) for flag in flags]
  command = [sys.executable, f"benchmarks/{name.split()[0]}.py", *flags]
  command.append(f"--json={tmp_path / 'out.json'}")
  env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  written = json.loads((tmp_path / "out.json").read_text())
  assert {"command", "date", "machine", "versions", "title"} <= written.keys()
  assert written["rows"] and column in written["rows"][0]


@pytest.mark.slow
def test_the_script_for_a_gpu_is_rehearsed_on_the_cpu(tmp_path):
  """Steps, operations, decoding, and a short training that is compared with the CPU's."""
  command = ["benchmarks/gpu.sh", str(tmp_path / "out"), "tiny"]
  python = {"PYTHON": sys.executable, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
  done = subprocess.run(command, cwd=ROOT, env=python, capture_output=True, text=True, timeout=1500)
  summary = (tmp_path / "out" / "summary.md").read_text()
  assert done.returncode == 0, summary
  step = "a step of 1.5B at fixed tokens"
  for part in ("losses compared", "ops", f"{step}, kernels", f"{step}, parallel", "decoding"):
    assert f"## {part}" in summary
