"""Short runs of the pass key config recall keys that local attention cannot, also in long texts."""

import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.evaluation.filing import newest

ROOT = Path(__file__).parent.parent
SMALL = {  # of `passkey_tiny`: examples of at most 256 tokens, keys of two digits, no write gate
  "optimizer.name": "adamw",  # the figures of docs/memory.md
  "model.segment_length": 32,
  "data.segments": 8,
  "data.lanes": 8,
  "infini.write_gate": False,
  "task.digits": 2,
  "task.curriculum_steps": 300,
  "warm.start_step": 500,
  "warm.segments": 1,
  "warm.min_tokens": 256,
  "train.steps": 1500,
}


def results_of(workdir, training, evaluation):
  """Trains and evaluates `passkey_tiny` with other fields, as a user would."""
  config = ["--config=configs/passkey_tiny.py", f"--workdir={workdir}"]
  config += [f"--config.{name}={value}" for name, value in training.items()]
  asked = [f"--config.evaluation.{name}={value}" for name, value in evaluation.items()]
  env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}  # without the eight devices of the tests
  for command in (["train.py", *config], ["eval.py", *config, *asked]):
    done = subprocess.run(
      [sys.executable, *command], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
  return newest(workdir, "passkey")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_key_is_recalled_after_many_segments(tmp_path, rule):
  training = {"train.steps": 600, "task.curriculum_steps": 300, "warm.share": 0.0}
  training["infini.rule"] = rule
  results = results_of(tmp_path, training, {"lengths": "(512,)", "depths": "(0.0,)"})
  (memory,), (out,) = results["memory"]["cells"], results["knocked_out"]["empty"]["cells"]
  assert memory["exact_match"] > 0.8, (
    f"only {memory['exact_match']:.0%} of the keys come back after 7 segments: the memory does not "
    f"learn; docs/memory.md says how to find out why"
  )
  assert out["exact_match"] < 0.05, "keys come back without the memory: something leaks"
  assert results["gates"]["greatest"] > 0.5, "no head has opened"


@pytest.mark.slow
def test_fast_forward_trains_for_texts_that_are_64_times_longer(tmp_path):
  """Companions read the same number of tokens with and without it: growth 1 fills less memory."""
  asked = {"lengths": "(256,16384)", "depths": "(0.0,0.5)", "samples": 30}
  found = {}
  for growth, most in ((1.3, 24_576), (1.0, 1024)):
    training = {**SMALL, "warm.growth": growth, "warm.max_tokens": most}
    results = results_of(tmp_path / str(growth), training, asked)
    found[growth] = [cell["exact_match"] for cell in results["memory"]["cells"]]
    empty = [cell["exact_match"] for cell in results["knocked_out"]["empty"]["cells"]]
    assert max(empty) < 0.1, f"{empty}: keys come back without the memory: something leaks"
  assert min(found[1.3][:2] + found[1.0][:2]) >= 0.9, f"{found}: keys in 256 tokens are not found"
  assert min(found[1.3][2:]) >= 0.9, f"{found}: fast-forward does not train for 16,384 tokens"
  gain = (sum(found[1.3][2:]) - sum(found[1.0][2:])) / 2
  assert gain > 0.1, f"{found}: fast-forward makes no difference at 16,384 tokens"
