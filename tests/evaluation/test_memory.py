"""The memory of a process does not grow with the text it reads; measured in new processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infini_jax.evaluation.filing import newest
from tests import tiny

ROOT = Path(__file__).parents[2]
LENGTHS = (3_000, 30_000, 300_000)
MOST = 32  # MiB; the hidden states of one layer alone would need 73
EVAL = """
import resource, sys
from infini_jax import cli
status = cli.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB on Linux
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count other bytes")
def test_a_book_of_300_000_tokens_needs_the_memory_of_one_of_3_000(tmp_path):
  """The same for a pass key. `pytest -s` prints the measured figures."""
  rng = np.random.default_rng(0)
  for split, size in (("train", 9000), ("validation", 900), ("test", LENGTHS[-1])):
    (tmp_path / "corpus" / split).mkdir(parents=True)
    (tmp_path / "corpus" / split / "book.txt").write_text("".join(rng.choice(tiny.LETTERS, size)))
  sections = {
    **tiny.RUN,
    "model": {**tiny.RUN["model"], "width": 64, "segment_length": 64, "rule": "delta"},
    "data": {**tiny.RUN["data"], "path": str(tmp_path / "corpus")},
    "train": {**tiny.RUN["train"], "steps": 1},
    "evaluation": {"lanes": 1, "segments": 16, "samples": 1, "depths": (0.0,), "knock_out": ()},
    "mesh": {"data": 1},
  }
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  config = (f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run")

  def run(*command):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
      [sys.executable, *command], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  run("train.py", *config)
  for task in ("perplexity", "passkey"):
    peaks = {}
    for tokens in LENGTHS:
      sizes = f"--config.evaluation.max_tokens={tokens}", f"--config.evaluation.lengths=({tokens},)"
      out = run("-c", EVAL, "eval", *config, f"--task={task}", *sizes)
      peaks[tokens] = int(out.rpartition("peak")[2]) / 1024
      print(f"{task}, {tokens:,} tokens: {peaks[tokens]:,.0f} MiB at the most")
      results = newest(tmp_path / "run", task)
      assert results["memory"]["tokens"] == tokens
    assert peaks[LENGTHS[-1]] - peaks[LENGTHS[0]] < MOST, f"{task}, MiB by tokens read: {peaks}"
