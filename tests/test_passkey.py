"""A short run of the pass key config recalls keys that local attention cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.evaluation.filing import newest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_key_is_recalled_after_many_segments(tmp_path, rule):
  config = ["--config=configs/passkey_tiny.py", f"--workdir={tmp_path}"]
  config += ["--config.train.steps=1000", "--config.warm.share=0.0", f"--config.infini.rule={rule}"]
  evaluation = ["--config.evaluation.lengths=(512,)", "--config.evaluation.depths=(0.0,)"]
  env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}  # without the eight devices of the tests
  for command in (["train.py", *config], ["eval.py", *config, *evaluation]):
    done = subprocess.run(
      [sys.executable, *command], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
  results = newest(tmp_path, "passkey")
  (memory,), (out,) = results["memory"]["cells"], results["knocked_out"]["empty"]["cells"]
  assert memory["exact_match"] > 0.8, (
    f"only {memory['exact_match']:.0%} of the keys come back after 7 segments: the memory does not "
    f"learn; docs/memory.md says how to find out why"
  )
  assert out["exact_match"] < 0.05, "keys come back without the memory: something leaks"
  assert results["gates"]["greatest"] > 0.5, "no head has opened"
