"""Runs, stores, states, exports and results of old code can be used (README.md says of which)."""

import dataclasses
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from infini_jax.convert.adapter import adapt
from infini_jax.convert.huggingface import convert
from infini_jax.evaluation import filing
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.inference import Session
from infini_jax.report.page import report
from infini_jax.report.runs import read_runs
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.training.loop import train
from tests.old.make import OTHERS, SHOWN
from tests.tiny import quiet

HERE = Path(__file__).parent
NUMBERS = json.loads((HERE / "numbers.json").read_text())  # the old code computed them
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def old(tmp_path, monkeypatch):
  """The old files; their paths are relative to the working directory."""
  with tarfile.open(HERE / "old.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  monkeypatch.chdir(tmp_path)
  return tmp_path


def logits(path):
  session = Session.load(path)
  tokens = [session.tokenizer.bos, *session.tokenizer.encode(NUMBERS["seen"])]
  engine, stream = session.run.engine, session.run.engine.start(1)
  for i in range(0, len(tokens), engine.segment):
    found_BV, stream = engine.extend(stream, [tokens[i : i + engine.segment]])
  return np.asarray(found_BV[0, ::SHOWN])


def test_a_run_continues(old):
  c = Workdir("infini").config()
  assert (c.model.mixer, c.model.memory.rule, c.train.steps) == ("infini", "delta", 3)
  longer = dataclasses.replace(c, train=dataclasses.replace(c.train, steps=5))
  with jax.numpy_dtype_promotion("standard"):
    state = train(longer, "infini", quiet())
  assert int(state.step) == 5
  found = {str(line["step"]): line["loss"] for line in read_metrics(old / "infini")}
  assert found.keys() == NUMBERS["losses"].keys()
  for step, loss in NUMBERS["losses"].items():
    np.testing.assert_allclose(found[step], loss, **CLOSE, err_msg=step)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name != "infini"))
    for name in ("infini", *OTHERS)
  ],
)
def test_a_checkpoint_of_each_memory_system_gives_the_same_logits(old, name):
  np.testing.assert_allclose(logits(name), NUMBERS["logits"][name], **CLOSE)


def test_a_state_continues_to_the_same_text(old):
  session = Session.load("states/text.state", model="infini")
  assert session.positions == [1 + len(NUMBERS["seen"])]
  assert [piece.token for piece in session.generate(8, temperature=0.0)] == NUMBERS["written"]


def test_an_export_comes_back(old):
  convert("export", old / "back", None, quiet())
  assert Workdir("back").config().model.memory.rule == "delta"
  np.testing.assert_allclose(logits("back"), NUMBERS["logits"]["infini"], **CLOSE)


def test_an_adapter_is_added_to_its_original(old):
  adapt("full", old / "adapter", old / "back", quiet())
  np.testing.assert_allclose(logits("back"), NUMBERS["logits"]["adapted"], **CLOSE)


def test_results_are_read_and_reported(old):
  found = filing.newest(old / "infini", "perplexity")
  assert found["memory"]["perplexity"] > 1 and found["knocked_out"]["empty"]["perplexity"] > 1
  assert len(filing.newest(old / "infini", "gates")["gates"]["gates_LH"]) == 2
  (run,) = read_runs(["infini"])
  assert run.last == (3, NUMBERS["losses"]["3"]) and len(run.evaluations) == 2
  page = report(["infini"], None, quiet()).read_text()
  assert "erplexity" in page and "gates" in page


@pytest.mark.slow
def test_an_evaluation_finds_the_old_figures(old):
  before = filing.newest(old / "infini", "perplexity")["memory"]["perplexity"]
  found = evaluate(Workdir("infini").config(), "infini", quiet(), tasks=["perplexity"])
  np.testing.assert_allclose(found["perplexity"]["memory"]["perplexity"], before, rtol=1e-5)
