"""The whole evaluation of a run: files, table, and what it refuses."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.evaluation import report
from infini_jax.evaluation.gates import gates
from tests.tiny import changed, quiet


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
  """A copy of the trained run, its results, and what was printed."""
  c, workdir, state = trained
  copy = tmp_path_factory.mktemp("evaluated") / "run"
  shutil.copytree(workdir, copy)
  out = io.StringIO()
  results = report.evaluate(c, str(copy), Console(file=out, width=120))
  return c, copy, state, results, out.getvalue()


def test_results_file_holds_what_is_returned(run):
  _, workdir, state, results, _ = run
  assert json.loads((workdir / "evaluation" / "results.json").read_text()) == json.loads(
    json.dumps(results)
  )
  assert (results["step"], results["split"]) == (6, "test")
  assert results["memory"]["documents"] == 3
  assert results["memory"]["tokens"] == results["knock_out"]["tokens"]
  assert results["memory"]["nats"] != results["knock_out"]["nats"]
  assert results["training_tokens_per_second"] > 0
  assert results["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
  np.testing.assert_allclose(results["gates"]["gates_LH"], gates(state.params), rtol=1e-6)


def test_pictures_are_pictures(run):
  folder = run[1] / "evaluation"
  for name in ("gates.png", "positions.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


def test_table_shows_the_figures(run):
  *_, results, out = run
  for figure in (
    f"{results['memory']['perplexity']:.3f}",
    f"{results['memory']['bits_per_byte']:.4f}",
    f"{results['knock_out']['perplexity']:.3f}",
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
  assert (results["step"], results["split"], results["memory"]["documents"]) == (3, "validation", 2)


def test_missing_runs_and_steps_are_refused(trained, tmp_path):
  c, workdir, _ = trained
  with pytest.raises(InputError, match="no run here; train first"):
    report.evaluate(c, str(tmp_path / "none"), quiet())
  with pytest.raises(InputError, match="no checkpoint of step 5"):
    report.evaluate(c, str(workdir), quiet(), step=5)
  other = changed(c, model=changed(c.model, width=32))
  with pytest.raises(InputError, match="another config .*width"):
    report.evaluate(other, str(workdir), quiet())
