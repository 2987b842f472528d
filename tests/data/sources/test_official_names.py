"""From data sets with official names to figures, by the commands of a user."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.config import SPLITS
from infini_jax.data import list_documents, read_text
from infini_jax.evaluation.filing import newest_file
from infini_jax.runs.metrics import read_metrics
from tests import tiny
from tests.compiling import QUICKLY
from tests.data.sources.tfds_fakes import pg19, write_tfds

ROOT = Path(__file__).parents[3]
BOOKS = ROOT.parent / "shared" / "corpora" / "books"


def texts_of(split):
  """Two real books if they are there, else files of Python's standard library."""
  if BOOKS.is_dir():
    files = sorted((BOOKS / split).glob("*.gz"))[:2]
    return [gzip.decompress(file.read_bytes()).decode()[:60_000] for file in files]
  return [read_text(document) for document in list_documents("python-stdlib")[split][:2]]


@pytest.fixture
def run(tmp_path):
  environ = os.environ | {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": str(tmp_path / "tfds")}
  environ["XLA_FLAGS"] = QUICKLY

  def run(*command):
    done = subprocess.run(
      [sys.executable, *command], cwd=ROOT, env=environ, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


@pytest.mark.slow
def test_books_are_prepared_mixed_trained_on_and_evaluated(run, tmp_path):
  books = {split: texts_of(split) for split in SPLITS}
  write_tfds(tmp_path / "tfds", "pg19", {split: pg19(own) for split, own in books.items()})
  pairs = {
    split: [{"document": text, "summary": text[:200].strip()} for text in own]
    for split, own in books.items()
  }
  write_tfds(tmp_path / "tfds", "booksum", pairs, config="book", version="1.0.0")
  for name in ("pg19", "booksum/book"):
    out = tmp_path / name
    made = run("-m", "infini_jax.cli", "prepare", f"--source=tfds:{name}", f"--out={out}")
    assert "verified: " in made
  stores = {f"{tmp_path}/pg19": 2, f"{tmp_path}/booksum/book": 1}
  mixture = ",".join(f"{store}={weight}" for store, weight in stores.items())
  sections = {
    **tiny.RUN,
    "data": {**tiny.RUN["data"], "path": f"mix:{mixture}"},
    "evaluation": {
      **tiny.RUN["evaluation"],
      "max_tokens": 3000,
      "summary_length": 8,
      "temperature": 0.5,
    },
    "mesh": {"data": 1},
  }
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  config = (f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run")
  run("train.py", *config, "--config.train.steps=3")
  assert "continuing from step 3" in run("train.py", *config, "--config.train.steps=5")
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]

  run("eval.py", *config, "--task=perplexity")
  only = f"--config.data.path={tmp_path}/booksum/book"
  run("eval.py", *config, "--task=summarization", only, "--config.evaluation.max_documents=1")
  results = lambda task: newest_file(tmp_path / "run", task)
  perplexity = json.loads(results("perplexity").read_text())["memory"]
  tokens = sum(min(3000, len(text.encode())) for text in books["test"])
  assert {s: (n, t) for s, (n, t, _) in perplexity["by_source"].items()} == {
    store: (2, tokens) for store in stores
  }
  told = results("summarization").with_name("predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["reference"] for line in told] == [books["test"][0][:200].strip()]
  run("-m", "infini_jax.cli", "report", f"--workdir={tmp_path}/run")
  page = (tmp_path / "run" / "report.html").read_text()
  assert "by store of the mixture" in page and "What was written" in page
