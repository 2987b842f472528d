"""Figures stand beside each other only if they are of the same text, tokenizer and task."""

import json

from infini_jax.report.groups import evaluated, trained
from infini_jax.report.headline import headline
from infini_jax.report.runs import read_runs
from tests.report.test_page import recalled, scores, write_run


def with_tokenizer(folder, fingerprint, text="one"):
  """Names the tokenizer and the corpus of all evaluations of a run."""
  for file in folder.rglob("results.json"):
    content = json.loads(file.read_text())
    content["tokenizer"] = fingerprint
    content["corpus"] = {"name": "books", "path": "books", "text": text, "fingerprint": "x"}
    content["split"], content["protocol"] = "test", {}
    file.write_text(json.dumps(content))
  return str(folder)


def test_losses_of_other_texts_tokenizers_or_tasks_are_apart(tmp_path):
  made = {
    "a": {},
    "b": {"model": {"layers": 3}, "optimizer": {"learning_rate": 0.5}},
    "c": {"data": {"path": "other"}},
    "d": {"data": {"tokenizer": "train:300"}},
    "e": {"task": {"name": "passkey"}, "data": {"path": "", "carry_state": False}},
  }
  folders = [str(write_run(tmp_path / name, **sections)) for name, sections in made.items()]
  runs = read_runs(folders)
  groups = trained(runs)
  assert [[run.name for run in some] for some in groups.values()] == [
    ["a", "b"],
    ["c"],
    ["d"],
    ["e"],
  ]
  assert "other" in list(groups)[1] and "tokenizer train:300" in list(groups)[2]
  assert "passkey" in list(groups)[3]
  assert list(trained(runs[:2])) == [""], "nothing to tell apart"


def test_perplexity_needs_the_same_tokenizer_and_bits_per_byte_the_same_text(tmp_path, rng):
  runs = {}
  for name, tokenizer, text in (
    ("a", "t1", "x"),
    ("b", "t1", "x"),
    ("c", "t2", "x"),
    ("d", "t1", "y"),
  ):
    folder = write_run(tmp_path / name, {"perplexity": ("perplexity", scores(rng), {})})
    runs[name] = with_tokenizer(folder, tokenizer, text)
  found = read_runs(list(runs.values()))
  groups = evaluated(found)
  assert [[m.run.name for m in group.members] for group in groups] == [["a", "b"], ["c"], ["d"]]
  assert "tokenizer t2" in groups[1].title and len({group.title for group in groups}) == 3
  page = headline(found)
  rows = [row for row in page.split("<tr>") if "perplexity per token" in row]
  assert [row.count("<td></td>") for row in rows] == [2, 3, 3]
  rows = [row for row in page.split("<tr>") if "bits per byte" in row]
  assert [row.count("<td></td>") for row in rows] == [1, 3]
  against = [row for row in page.split("<tr>") if "perplexity against a" in row]
  assert len(against) == 1 and against[0].count("<td></td>") == 3


def test_a_run_that_was_asked_something_else_has_a_group_of_its_own(tmp_path, rng):
  one = write_run(tmp_path / "a", {"passkey": ("passkey", recalled(rng), {})})
  two = write_run(tmp_path / "b", {"needle": ("needle", recalled(rng), {})})
  groups = evaluated(read_runs([str(one), str(two)]))
  assert [(g.title, len(g.members)) for g in groups] == [("passkey", 1), ("needle, single", 1)]
