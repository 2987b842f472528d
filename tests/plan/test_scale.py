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
NEEDS = {"v": ("libtpu", "tpu"), "h": ("jax_cuda13_plugin", "gpu-plan")}  # by a topology's letter


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
    ("llm_8b", "h100:8x8", [], 7.5),
  ],
)
def test_a_chip_holds_the_compiled_step(tmp_path, config, topology, more, bar):
  package, extra = NEEDS[topology[0]]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f"{package} is not installed: pip install '.[{extra}]'")
  out = tmp_path / "plan.json"
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  done = subprocess.run(
    [sys.executable, "-m", "infini_jax.cli", "plan", f"--config=configs/{config}.py"]
    + [f"--topology={topology}", f"--json={out}", *more],
    cwd=ROOT, env=env, text=True, capture_output=True, timeout=3000,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  compiled = json.loads(out.read_text())["compiled"]
  peak = compiled["peak"] / 2**30
  assert peak <= bar, f"XLA plans {peak:.2f} GiB a chip, more than {bar}: what is held, and whole?"
