"""The folder of results names what was evaluated, so no evaluation overwrites another."""

import json
import shutil

import pytest

from infini_jax.config import InputError
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import (
  Evaluated,
  files,
  newest,
  newest_file,
  told_apart,
)
from infini_jax.report.page import report
from tests.tiny import changed, quiet


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
  """A copy of the trained run, and its config without ablations."""
  c, workdir, _ = trained
  copy = tmp_path_factory.mktemp("filed") / "run"
  shutil.copytree(workdir, copy)
  return changed(c, evaluation=changed(c.evaluation, knock_out=())), copy


def asked(c, **evaluation):
  return changed(c, evaluation=changed(c.evaluation, **evaluation))


@pytest.mark.slow
def test_protocols_and_splits_have_separate_named_results(run):
  c, workdir = run
  read = lambda c, **more: evaluate(c, str(workdir), quiet(), tasks=("perplexity",), **more)
  read(c, command="first")
  first = newest_file(workdir, "perplexity")
  others = ({"split": "validation"}, {"max_tokens": 50}, {"input_tokens": 32})
  for other in others:
    read(asked(c, **other))
  assert len(list(files(workdir / "evaluation"))) == 1 + len(others)
  found = json.loads(first.read_text())
  assert (found["command"], found["split"], found["step"]) == ("first", "test", 6)
  assert found["corpus"]["path"] == c.data.path and found["corpus"]["name"] == "corpus"
  assert found["protocol"]["evaluation.max_tokens"] == 0 and found["segment_length"] == 16
  assert found["tokenizer"] and found["corpus"]["fingerprint"] != found["corpus"]["text"]
  assert first.parent.name.startswith("corpus-test-")
  read(asked(c, lanes=16, segments=1), command="again")
  assert json.loads(first.read_text())["command"] == "again", "lanes change no figure"
  assert len(list(files(workdir / "evaluation"))) == 1 + len(others)
  read(asked(c, max_tokens=50), step=3)
  earlier = newest_file(workdir, "perplexity").parent.name
  assert earlier.endswith("-step-3"), "of an earlier step, results stand apart"

  page = report([str(workdir)], None, quiet()).read_text("utf-8")
  perplexity = lambda file: f"{json.loads(file.read_text())['memory']['perplexity']:.6g}"
  cut = newest_file(workdir, "perplexity")
  for shown in ("validation", "max_tokens 50", "input_tokens 32", perplexity(first), earlier):
    assert shown in page, f"the page lacks {shown!r}"
  assert perplexity(cut) in page
  groups = [row for row in page.split('<tr class="group">') if "<span>perplexity: " in row[:99]]
  assert len(groups) == 1 + len(others), "rows of their own for each protocol"


def evaluated(**more):
  fields = {
    "task": "perplexity",
    "corpus": {"name": "books", "path": "a/books", "text": "11", "fingerprint": "aa"},
    "split": "test",
    "protocol": {"evaluation.max_tokens": 0},
    "knock_out": ("empty",),
    "step": 6,
  }
  return Evaluated(**(fields | more))


def test_differences_between_evaluations_are_named():
  other = {"name": "code", "path": "a/code", "text": "22", "fingerprint": "bb"}
  same_name = other | {"name": "books", "path": "b/books"}
  some = {"a": evaluated(), "b": evaluated(corpus=other), "c": evaluated(split="train")}
  assert told_apart(some) == {"a": "books, test", "b": "code, test", "c": "books, train"}
  assert told_apart({"a": evaluated()}) == {"a": ""}
  some = {"a": evaluated(), "b": evaluated(corpus=same_name)}
  assert told_apart(some) == {"a": "a/books (11)", "b": "b/books (22)"}
  some = {"a": evaluated(), "b": evaluated(protocol={"evaluation.max_tokens": 9})}
  assert told_apart(some) == {"a": "", "b": "max_tokens 9"}, "what is off is not said"
  some = {"a": evaluated(), "b": evaluated(protocol={"evaluation.document": "b.txt"})}
  assert told_apart(some) == {"a": "", "b": "document b.txt"}
  some = {
    name: evaluated(protocol={"evaluation.temperature": t}) for name, t in (("a", 0.0), ("b", 0.5))
  }
  assert told_apart(some) == {"a": "temperature 0.0", "b": "temperature 0.5"}
  some = {"a": evaluated(), "b": evaluated(corpus=None, split=None)}
  assert told_apart(some)["b"] == "corpus not named, split not named"


def test_only_settings_that_change_figures_change_the_folder():
  folder = lambda **more: evaluated(**more).folder("perplexity", 6)
  moved = {"name": "books", "path": "c/books", "text": "11", "fingerprint": "aa"}
  assert folder() == folder(corpus=moved), "a corpus may move"
  different = [
    folder(),
    folder(corpus=moved | {"text": "33"}),
    folder(split="train"),
    folder(protocol={"evaluation.max_tokens": 9}),
    folder(knock_out=()),
    folder(step=3),
  ]
  assert len(set(different)) == len(different)
  strange = folder(corpus=moved | {"name": "../a b/\udcff" + "é" * 99})
  assert len(strange.parts) == 2 and len(strange.name.encode()) < 255
  assert evaluated().key == evaluated(knock_out=(), step=3).key, "they stand in one row"


def test_a_task_that_was_not_evaluated_is_reported_in_one_line(tmp_path):
  with pytest.raises(InputError, match="recall was not evaluated; eval.py --workdir="):
    newest(tmp_path, "recall")


def test_results_of_the_average_stand_apart_and_say_so(averaged):
  c, workdir, _ = averaged
  c = changed(c, evaluation=changed(c.evaluation, knock_out=()))
  read = lambda **how: evaluate(c, str(workdir), quiet(), tasks=("perplexity",), **how)[
    "perplexity"
  ]
  last, mean = read(), read(ema=True)
  assert (last["weights"], mean["weights"]) == ("last", "moving average")
  assert last["memory"]["perplexity"] != mean["memory"]["perplexity"]
  own, other = map(Evaluated.of, (last, mean))
  assert own.key == other.key, "they can be compared"
  assert other.folder("perplexity", 6).name == own.folder("perplexity", 6).name + "-ema"
  assert len(list(files(workdir / "evaluation"))) == 2
  page = report([str(workdir)], None, quiet()).read_text("utf-8")
  assert "weights moving average" in page and f"{last['memory']['perplexity']:.6g}" in page
  older = {name: value for name, value in last.items() if name != "weights"}
  assert Evaluated.of(older) == own
