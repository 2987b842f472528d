"""The benchmarks run to their end, with tiny shapes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_COMMAND = {"record", "peer_torch"}  # modules of others
BENCHMARKS = [f for f in sorted((ROOT / "benchmarks").glob("*.py")) if f.stem not in NO_COMMAND]


@pytest.mark.slow
@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_says_what_it_takes(file):
  command = [sys.executable, str(file), "--help"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_script_for_a_gpu_is_rehearsed_on_the_cpu(tmp_path):
  """Steps, operations, decoding, and a short training that is compared with the CPU's."""
  command = ["benchmarks/gpu.sh", str(tmp_path / "out"), "tiny"]
  python = {"PYTHON": sys.executable, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
  done = subprocess.run(command, cwd=ROOT, env=python, capture_output=True, text=True, timeout=1500)
  summary = (tmp_path / "out" / "summary.md").read_text()
  assert done.returncode == 0, summary
  for part in ("losses compared", "ops", "a step of 1.5B", "decoding with 1.5B"):
    assert f"## {part}" in summary
