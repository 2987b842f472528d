"""Billions of parameters, compiled for TPUs and GPUs that are not there: XLA's memory must fit.

Each test takes minutes and about 3 GiB. libtpu takes a lock, so run one at a time.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WIDE = ["--config.mesh.fsdp=64", "--config.data.lanes=64", "--config.evaluation.lanes=64"]


HOST = ["--config.mesh.fsdp=8", "--config.mesh.seq=1"]
HOST += ["--config.data.lanes=8", "--config.evaluation.lanes=8"]
GPUS = ("jax_cuda13_plugin", "gpu-plan")
NEEDS = {"v": ("libtpu", "tpu"), "h": GPUS, "b": GPUS}  # by a topology's letter
BEFORE = 3143.65  # estimated ms of the step of `llm_1b.py` on v5e:4x4 in plain JAX


@pytest.mark.slow
@pytest.mark.parametrize(
  "config,topology,more,bar",
  [
    ("llm_1b", "v5e:16x16", [], 4.0),
    ("llm_8b", "v5p:4x4x4", [], 8.5),
    ("llm_8b", "v5e:16x16", WIDE, 7.0),
    ("million", "v5p:4x4x4", [], 13.0),
    ("llm_1b", "h100:8", HOST, 12.0),
    ("llm_8b", "h200:8", HOST, 36.0),
    ("llm_8b", "b200:8", HOST, 36.0),
    ("llm_8b", "h100:8x8", [], 7.5),
  ],
)
def test_a_chip_holds_the_compiled_step(tmp_path, config, topology, more, bar):
  command = ["-m", "infini_jax.cli", "plan"]
  compiled = compiled_by(command, tmp_path / "plan.json", config, topology, more)["compiled"]
  peak = compiled["peak"] / 2**30
  assert peak <= bar, f"XLA plans {peak:.2f} GiB a chip, more than {bar}: what is held, and whole?"


@pytest.mark.slow
def test_a_step_of_1b_is_far_shorter_than_in_plain_jax(tmp_path):
  """By the estimate of `benchmarks/plan_step.py`: at least 12%, and the memory path is 5% of it."""
  more = ["--config.mesh.fsdp=16", "--config.mesh.seq=1"]
  more += ["--config.data.lanes=16", "--config.evaluation.lanes=16"]
  command = ["benchmarks/plan_step.py"]
  found = compiled_by(command, tmp_path / "step.json", "llm_1b", "v5e:4x4", more)
  ms = {row["category"]: row["ms"] for row in found["rows"]}
  assert ms["all"] <= 0.88 * BEFORE, "see docs/performance.md for the time of each category"
  assert ms["memory"] + ms["mixing"] <= 0.05 * ms["all"]


def compiled_by(command, out, config, topology, more):
  """What a program writes about the step of a config, compiled for a topology."""
  package, extra = NEEDS[topology[0]]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f"{package} is not installed: pip install '.[{extra}]'")
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  done = subprocess.run(
    [sys.executable, *command, f"--config=configs/{config}.py", f"--topology={topology}"]
    + [f"--json={out}", *more],
    cwd=ROOT, env=env, text=True, capture_output=True, timeout=3000,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(out.read_text())
