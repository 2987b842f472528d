"""The evaluation of a run on a set of tasks: files, tables, and refusals."""

import html
import io
import json
import math
import re
import shutil
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax import config as config_lib
from infini_jax.config import InputError
from infini_jax.config.schema import TASKS
from infini_jax.evaluation import evaluate as module
from infini_jax.evaluation import perplexity_tables, retrieval_tables, summarization_tables
from infini_jax.evaluation.answers import ROUGES, Answer
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import newest, newest_file
from infini_jax.evaluation.gates import gates
from infini_jax.evaluation.perplexity import Scores
from infini_jax.evaluation.retrieval import Cell, Recalled
from infini_jax.evaluation.summarization import Summarized
from infini_jax.evaluation.tasks import KINDS, NAMES, jobs_of
from infini_jax.models import param_shapes
from infini_jax.report.page import report
from tests.tiny import SYSTEMS, changed, config, model_config, quiet

COMMAND = "infini-jax eval --config=a.py --workdir='a b'"


def saved(workdir, name):
  return newest(workdir, name)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
  """A copy of the trained run, its results, and the printed text."""
  c, workdir, state = trained
  copy = tmp_path_factory.mktemp("evaluated") / "run"
  shutil.copytree(workdir, copy)
  out = io.StringIO()
  evaluation = changed(c.evaluation, knock_out=("empty", "reads", "layers"))
  c = changed(c, evaluation=evaluation)
  results = evaluate(c, str(copy), Console(file=out, width=160), command=COMMAND)
  return c, copy, state, results, out.getvalue()


def test_results_file_holds_what_is_returned(run):
  c, workdir, state, everything, _ = run
  assert list(everything) == ["perplexity", "gates"], "what it is trained on, and the gates"
  for name, results in everything.items():
    assert saved(workdir, name) == json.loads(json.dumps(results))
  results = everything["perplexity"]
  assert (results["step"], results["task"], results["split"]) == (6, "perplexity", "test")
  assert results["memory"]["documents"] == 3
  out = results["knocked_out"]
  assert list(out) == ["empty", "reads cut", "layer 1 cut", "layer 2 cut"]
  assert {results["memory"]["tokens"]} == {o["tokens"] for o in out.values()}
  nats = [results["memory"]["nats"], *(o["nats"] for o in out.values())]
  assert len(set(nats)) == 5, f"two variants of the evaluation are the same: {nats}"
  assert results["training_tokens_per_second"] > 0
  assert results["training_step_bytes"] > results["parameters"] * 4 * 3, "weights and two moments"
  assert results["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
  expected = gates(c.model, state.params)
  for results in everything.values():
    np.testing.assert_allclose(results["gates"]["gates_LH"], expected, rtol=1e-6)


def test_results_say_how_they_were_made(run):
  for results in run[3].values():
    assert results["command"] == COMMAND
    assert results["date"].endswith("+00:00") and results["seconds"] >= 0
    assert results["settings"]["evaluation"]["knock_out"] == ("empty", "reads", "layers")
    assert results["settings"]["task"]["name"] == "text"
    environment = results["environment"]
    assert environment["jax"] == jax.__version__ and environment["numpy"] == np.__version__
    assert (environment["devices"], environment["backend"]) == (8, "cpu")
    assert environment["cpus"] >= 1 and environment["device"] and environment["flax"]
  perplexity = run[3]["perplexity"]
  read = [perplexity["memory"], *perplexity["knocked_out"].values()]
  assert perplexity["seconds"] >= sum(scores["seconds"] for scores in read)


def test_the_page_holds_what_was_written(run):
  _, workdir, _, everything, _ = run
  page = report([str(workdir)], None, quiet()).read_text("utf-8")
  memory = everything["perplexity"]["memory"]
  for shown in (f"{memory['perplexity']:.6g}", html.escape(COMMAND), "test: ", jax.__version__):
    assert shown in page, f"the page lacks {shown!r}"
  for picture in ("Line chart, Training loss", "perplexity by position", "Heat map of the gate"):
    assert picture in page, f"no picture of {picture}"


def test_pictures_are_png_files(run):
  for task, name in (("gates", "gates.png"), ("perplexity", "positions.png")):
    assert newest_file(run[1], task).with_name(name).read_bytes().startswith(b"\x89PNG"), name


def test_table_shows_the_figures(run):
  *_, everything, out = run
  results = everything["perplexity"]
  for figure in (
    f"{results['memory']['perplexity']:.3f}",
    f"{results['memory']['bits_per_byte']:.4f}",
    *(f"{out['perplexity']:.3f}" for out in results["knocked_out"].values()),
    f"{results['parameters']:,}",
    f"{results['gates']['greatest']:.3f}",
    "3 whole documents, step 6",
  ):
    assert figure in out, f"the table lacks {figure}:\n{out}"


def test_an_earlier_step_can_be_chosen_on_another_mesh(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  other = changed(
    c, mesh=changed(c.mesh, data=4, fsdp=2), evaluation=changed(c.evaluation, split="validation")
  )
  results = evaluate(other, str(tmp_path / "run"), quiet(), step=3)["perplexity"]
  assert (results["step"], results["memory"]["documents"]) == (3, 2), "2 documents of validation"
  assert list(results["knocked_out"]) == ["empty"]


def test_missing_runs_and_steps_are_refused(trained, tmp_path):
  c, workdir, _ = trained
  with pytest.raises(InputError, match="no run here; train first"):
    evaluate(c, str(tmp_path / "none"), quiet())
  with pytest.raises(InputError, match="no checkpoint of step 5; choose one of .*6"):
    evaluate(c, str(workdir), quiet(), step=5)
  other = changed(c, model=changed(c.model, width=32))
  for tasks in ((), ("gates",)):
    with pytest.raises(InputError, match="another config .*width"):
      evaluate(other, str(workdir), quiet(), tasks=tasks)


@pytest.mark.slow
def test_a_set_of_tasks_restores_once_and_reads_nothing_twice(
  trained_on_task, tmp_path, monkeypatch
):
  c, workdir, _ = trained_on_task
  shutil.copytree(workdir, tmp_path / "run")
  restored, ran = [], []
  restore, run = module.Checkpoints.restore_params, KINDS["passkey"].evaluator.run
  counted = lambda self, *args: restored.append(1) or restore(self, *args)
  monkeypatch.setattr(module.Checkpoints, "restore_params", counted)
  named = lambda self, params, variant, **more: (
    ran.append(variant.name) or run(self, params, variant, **more)
  )
  monkeypatch.setattr(KINDS["passkey"].evaluator, "run", named)
  c = changed(c, evaluation=changed(c.evaluation, knock_out=("empty",)))
  started = time.perf_counter()
  found = evaluate(c, str(tmp_path / "run"), quiet(), tasks=("gates", "passkey", "knockout"))
  assert (list(found), len(restored)) == (["gates", "passkey", "knockout"], 1)
  layers = ["layer 1 cut", "layer 2 cut"]
  assert ran == ["memory", "empty", "reads cut", *layers, "memory of another"]
  assert list(found["passkey"]["knocked_out"]) == ["empty"], "as the config says"
  assert ["memory", *found["knockout"]["knocked_out"]] == ran, "whatever the config says"
  assert found["knockout"]["task"] == "passkey", "the run's own task"
  assert found["knockout"]["memory"] == found["passkey"]["memory"]
  took = [one["seconds"] for one in found.values()]
  assert sum(took) <= time.perf_counter() - started, "what two tasks share counts once"
  folder = tmp_path / "run" / "evaluation"
  places = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))
  assert [re.sub("-tokens-[0-9a-f]{6}", "", place) for place in places] == [
    "gates/gates.png",
    "gates/results.json",
    "knockout/200/passkey.png",
    "knockout/200/results.json",
    "passkey/200/passkey.png",
    "passkey/200/results.json",
  ]


def test_gates_alone_open_no_corpus(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  c = changed(c, data=changed(c.data, path=str(tmp_path / "nowhere")))
  found = evaluate(c, str(tmp_path / "run"), quiet(), tasks=("gates",))
  assert list(found) == ["gates"] and "memory" not in found["gates"]
  with pytest.raises(InputError, match="no such folder"):
    evaluate(c, str(tmp_path / "run"), quiet(), tasks=("gates", "perplexity"))


def test_impossible_tasks_are_refused_before_a_device_is_used(
  trained, trained_on_task, monkeypatch
):
  def never(*args, **more):
    pytest.fail("a device or a checkpoint was touched before the tasks were looked at")

  monkeypatch.setattr(module, "make_mesh", never)
  monkeypatch.setattr(module, "Checkpoints", never)

  def refused(fixture, *tasks, **evaluation):
    c, workdir, _ = fixture
    c = changed(c, evaluation=changed(c.evaluation, **evaluation))
    with pytest.raises(InputError) as e:
      evaluate(c, str(workdir), quiet(), tasks=tasks)
    assert "\n" not in str(e.value)
    return str(e.value)

  wrong = refused(trained, "perplexity", "perplexty")
  assert wrong.startswith("--task=perplexty: choose some of perplexity,passkey,")
  assert "recall has its own vocabulary" in refused(trained, "perplexity", "recall")
  assert "100 tokens are too short" in refused(trained, "passkey", lengths=(900, 100))
  assert "cannot read text" in refused(trained_on_task, "passkey", "perplexity")


def test_a_mixer_is_evaluated_only_on_what_it_has():
  for name, fields in SYSTEMS.items():
    shapes = param_shapes(model_config(**fields))
    has_gates = "beta_H" in shapes["blocks"]["attention"].get("mixer", {})
    said = config_lib.SYSTEMS[name].gated
    assert said == has_gates, f"the fact `gated` is wrong about {name}"
    c = config(model=fields, data={"carry_state": False})
    assert [job.name for job in jobs_of(c, ())] == ["perplexity", "gates"][: 1 + has_gates]
    if not has_gates:
      with pytest.raises(InputError, match="has no gates; leave it out"):
        jobs_of(c, ["gates"])
    if name == "local":
      with pytest.raises(InputError, match="no memory to take away; leave it out"):
        jobs_of(c, ["knockout"])
      continue
    (job,) = jobs_of(c, ["knockout"])
    layered = name not in ("rmt", "autocompressor")
    assert len(job.variants) == 4 + 2 * layered, "all, and each layer if it can"
  assert set(NAMES) == {*KINDS, "gates", "knockout"}
  missing = set(TASKS) - {kind.dataset for kind in KINDS.values()}
  assert not missing, f"a run can be trained on {missing}: give it an entry in tasks.KINDS"
  with pytest.raises(InputError, match="--task=: choose some of"):
    jobs_of(config(), ["perplexity", ""])


def test_a_tasks_evaluation_writes_its_figures_table_and_pictures(trained_on_task, tmp_path):
  c, workdir, state = trained_on_task
  shutil.copytree(workdir, tmp_path / "run")
  out = io.StringIO()
  everything = evaluate(c, str(tmp_path / "run"), Console(file=out, width=200))
  assert list(everything) == ["passkey", "gates"]
  results = everything["passkey"]
  assert saved(tmp_path / "run", "passkey") == json.loads(json.dumps(results))
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
  for task, name in (("gates", "gates.png"), ("passkey", "passkey.png")):
    assert (
      newest_file(tmp_path / "run", task).with_name(name).read_bytes().startswith(b"\x89PNG")
    ), name
  text = out.getvalue()
  for figure in ("passkey: 3 new examples a line, step 4", "80", "200", "layer 2 cut", "0.5"):
    assert figure in text, f"the table lacks {figure}:\n{text}"


def test_a_run_on_text_is_asked_for_a_pass_key_in_its_own_tokens(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  asked = {"task": "passkey", "lengths": (300,), "depths": (1.0,), "samples": 2}
  other = changed(c, evaluation=changed(c.evaluation, **asked))
  results = evaluate(other, str(tmp_path / "run"), quiet())["passkey"]
  assert (results["task"], results["memory"]["tokens"]) == ("passkey", 600)
  assert results["memory"]["cells"][0]["tokens"] == 8, "a byte for each digit"
  assert set(results["knocked_out"]) == {"empty"}


def test_the_verdict_says_so_when_the_memory_carries_nothing():
  def recalled(right, exact=0):
    return Recalled((Cell(100, 0.0, 50, exact, 200, right),), 5000, 1.0)

  def verdict(**right):
    out = io.StringIO()
    found = {name: recalled(count) for name, count in right.items()}
    retrieval_tables.verdict(found, Console(file=out, width=300))
    return out.getvalue()

  for memory in (20, 25):
    said = verdict(memory=memory, empty=20)
    assert "show no effect of the memory" in said, "within the error of the counts"
    assert f"{memory / 2:.1f}% (" in said and "10.0% (7% to 15%) without" in said
  assert verdict(memory=180, empty=20) == "" == verdict(memory=20)
  nothing = verdict(memory=0, empty=0)
  assert "no effect" not in nothing and "Nothing was recalled, with the memory or" in nothing


def test_the_verdict_on_perplexity_is_true_of_all_figures():
  def verdict(memory, empty, updates=(0, 1)):
    out, nats = io.StringIO(), lambda x: 10 * math.log(x)
    of = lambda x: Scores(
      1, 10, 2, 10, nats(x), 1.0, {}, dict.fromkeys(updates, (5, 1.0)), [("a", 10, nats(x))]
    )
    perplexity_tables.verdict({"memory": of(memory), "empty": of(empty)}, Console(file=out))
    return " ".join(out.getvalue().split())

  assert "does not help: without it the perplexity is +0.00%" in verdict(7.0, 7.0)
  assert verdict(7.0, 9.0) == ""
  assert verdict(math.nan, 7.0) == verdict(math.inf, 7.0) == verdict(7.0, math.inf) == ""
  single = verdict(7.0, 7.0, updates=(0,))
  assert "does not help" not in single and "do not show the memory" in single


def test_the_verdict_on_summaries_is_true_of_all_figures():
  def verdict(memory, empty):
    out = io.StringIO()
    scores = lambda rouge: dict.fromkeys(ROUGES, rouge)
    of = lambda rouge: Summarized((Answer("a", 9, "b", "c", scores(rouge), 1, 1.0),), {}, 1.0)
    summarization_tables.verdict({"memory": of(memory), "empty": of(empty)}, Console(file=out))
    return " ".join(out.getvalue().split())

  assert "does not help" in verdict(0.2, 0.2)
  assert verdict(0.3, 0.2) == ""
  assert "does not help" not in verdict(0.0, 0.0) and "does not show" in verdict(0.0, 0.0)
