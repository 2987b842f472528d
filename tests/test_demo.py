"""The demo, shortened, by its real commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.evaluation.filing import newest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_uses_its_memory(tmp_path):
  config = ["--config=configs/demo.py", f"--workdir={tmp_path}"]

  def run(*command):
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}  # one device
    done = subprocess.run(
      [sys.executable, *command], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done

  run("train.py", *config, "--config.train.steps=80")
  run("eval.py", *config, "--config.evaluation.max_documents=6")
  results = newest(tmp_path, "perplexity")
  ratio = results["knocked_out"]["empty"]["perplexity"] / results["memory"]["perplexity"]
  assert ratio > 1.02, (
    f"without its memory the demo is only {ratio - 1:.1%} worse: look at the gates and at the "
    f"perplexity by position in {tmp_path / 'evaluation'}"
  )
  restored = run(
    *("-m", "infini_jax.cli", "generate", f"--workdir={tmp_path}", "--prompt-document=test:0"),
    *("--tokens=20", "--temperature=0"),
  )
  assert restored.stdout.strip(), "nothing was written after the prompt"
