"""The whole evaluation of a run: files, table, and what it refuses."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.evaluation import report, retrieval_tables
from infini_jax.evaluation.gates import gates
from infini_jax.evaluation.retrieval import Cell, Recalled
from tests.tiny import changed, quiet


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
  """A copy of the trained run, its results, and what was printed."""
  c, workdir, state = trained
  copy = tmp_path_factory.mktemp("evaluated") / "run"
  shutil.copytree(workdir, copy)
  out = io.StringIO()
  evaluation = changed(c.evaluation, knock_out=("empty", "reads", "layers"))
  c = changed(c, evaluation=evaluation)
  results = report.evaluate(c, str(copy), Console(file=out, width=160))
  return c, copy, state, results, out.getvalue()


def test_results_file_holds_what_is_returned(run):
  c, workdir, state, results, _ = run
  assert json.loads((workdir / "evaluation" / "results.json").read_text()) == json.loads(
    json.dumps(results)
  )
  assert (results["step"], results["task"]) == (6, "text")
  assert results["memory"]["documents"] == 3
  out = results["knocked_out"]
  assert list(out) == ["empty", "reads cut", "layer 1 cut", "layer 2 cut"]
  assert {results["memory"]["tokens"]} == {o["tokens"] for o in out.values()}
  nats = [results["memory"]["nats"], *(o["nats"] for o in out.values())]
  assert len(set(nats)) == 5, f"two variants of the evaluation are the same: {nats}"
  assert results["training_tokens_per_second"] > 0
  assert results["training_step_bytes"] > results["parameters"] * 4 * 3, "weights and two moments"
  assert results["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
  np.testing.assert_allclose(results["gates"]["gates_LH"], gates(c.model, state.params), rtol=1e-6)


def test_pictures_are_pictures(run):
  folder = run[1] / "evaluation"
  for name in ("gates.png", "positions.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


def test_table_shows_the_figures(run):
  *_, results, out = run
  for figure in (
    f"{results['memory']['perplexity']:.3f}",
    f"{results['memory']['bits_per_byte']:.4f}",
    *(f"{out['perplexity']:.3f}" for out in results["knocked_out"].values()),
    f"{results['parameters']:,}",
    "3 whole documents, step 6",
  ):
    assert figure in out, f"the table lacks {figure}:\n{out}"


def test_an_earlier_step_can_be_chosen_on_another_mesh(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  other = changed(
    c, mesh=changed(c.mesh, data=4, fsdp=2), evaluation=changed(c.evaluation, split="validation")
  )
  results = report.evaluate(other, str(tmp_path / "run"), quiet(), step=3)
  assert (results["step"], results["memory"]["documents"]) == (3, 2), "2 documents of validation"
  assert list(results["knocked_out"]) == ["empty"]


def test_missing_runs_and_steps_are_refused(trained, tmp_path):
  c, workdir, _ = trained
  with pytest.raises(InputError, match="no run here; train first"):
    report.evaluate(c, str(tmp_path / "none"), quiet())
  with pytest.raises(InputError, match="no checkpoint of step 5"):
    report.evaluate(c, str(workdir), quiet(), step=5)
  other = changed(c, model=changed(c.model, width=32))
  with pytest.raises(InputError, match="another config .*width"):
    report.evaluate(other, str(workdir), quiet())


def test_a_tasks_evaluation_writes_its_figures_table_and_pictures(trained_on_task, tmp_path):
  c, workdir, state = trained_on_task
  shutil.copytree(workdir, tmp_path / "run")
  out = io.StringIO()
  results = report.evaluate(c, str(tmp_path / "run"), Console(file=out, width=200))
  folder = tmp_path / "run" / "evaluation"
  assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
  assert (results["task"], results["step"]) == ("passkey", 4)
  assert list(results["knocked_out"]) == ["empty", "reads cut", "layer 1 cut", "layer 2 cut"]
  for found in (results["memory"], *results["knocked_out"].values()):
    places = [(cell["length"], cell["depth"]) for cell in found["cells"]]
    assert places == [(length, depth) for length in (80, 200) for depth in (0.0, 0.5, 1.0)]
    assert found["tokens"] == 9 * 280 and found["tokens_per_second"] > 0
    for cell in found["cells"]:
      assert cell["samples"] == 3 and cell["tokens"] == 3 * c.task.digits
      low, high = cell["token_accuracy_interval"]
      assert 0 <= low <= cell["token_accuracy"] <= high <= 1
  for name in ("gates.png", "passkey.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
  text = out.getvalue()
  for figure in ("passkey: 3 fresh examples a line, step 4", "80", "200", "layer 2 cut", "0.5"):
    assert figure in text, f"the table lacks {figure}:\n{text}"


def test_a_run_on_text_is_asked_for_a_pass_key_in_its_own_tokens(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  asked = {"task": "passkey", "lengths": (300,), "depths": (1.0,), "samples": 2}

  def evaluate(**fields):
    other = changed(c, evaluation=changed(c.evaluation, **asked | fields))
    return report.evaluate(other, str(tmp_path / "run"), quiet())

  results = evaluate()
  assert (results["task"], results["memory"]["tokens"]) == ("passkey", 600)
  assert results["memory"]["cells"][0]["tokens"] == 8, "a byte for each digit"
  assert set(results["knocked_out"]) == {"empty"}
  with pytest.raises(InputError, match="config.evaluation.lengths: 100 tokens are too short") as e:
    evaluate(lengths=(300, 100))
  assert "\n" not in str(e.value)
  with pytest.raises(InputError, match="recall has its own vocabulary"):
    evaluate(task="recall")


def test_the_verdict_says_so_when_the_memory_carries_nothing():
  def recalled(right, exact=0):
    return Recalled((Cell(100, 0.0, 50, exact, 200, right),), 5000, 1.0)

  def verdict(memory, empty):
    out = io.StringIO()
    found = {"memory": recalled(memory), "empty": recalled(empty)}
    retrieval_tables.verdict(found, Console(file=out, width=100))
    return out.getvalue()

  assert "The memory carries nothing" in verdict(20, 20)
  assert "The memory carries nothing" in verdict(25, 20), "within the error of the counts"
  assert verdict(180, 20) == ""
