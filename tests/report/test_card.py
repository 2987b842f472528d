"""Cards hold what the files of a run hold, and nothing else."""

import json

import pytest

from infini_jax.config import InputError
from infini_jax.report.card import card, write
from infini_jax.runs.workdir import Workdir
from tests.tiny import config, quiet

PERPLEXITY = {"perplexity": 12.25, "bits_per_byte": 1.5, "word_perplexity": 99.0, "documents": 3}
PERPLEXITY |= {"tokens": 4321, "bytes": 9876}
CELL = {"length": 4096, "depth": 0.5, "samples": 20, "exact": 19, "tokens": 80, "right": 79}


def make_run(folder, **sections):
  run = Workdir(folder / "my-run")
  run.claim(config(**sections), "a corpus")
  return run


def evaluated(run, name, task, memory, empty=None):
  """Writes the results of an evaluation."""
  results = {
    "task": task,
    "step": 7,
    "date": "2026-11-29T12:00:00+00:00",
    "seconds": 2.5,
    "settings": {"task": {"name": task}, "evaluation": {"knock_out": []}},
    "environment": {"device": "TPU v5e", "devices": 4},
    "parameters": 1234567,
    "memory": memory,
    "command": f"infini-jax eval --workdir={run.path} --task={task}",
  }
  results |= {"knocked_out": {"empty": empty}} if empty else {}
  place = run.path / "evaluation" / name
  place.mkdir(parents=True)
  (place / "results.json").write_text(json.dumps(results))
  return place / "results.json"


def test_a_run_without_an_evaluation_says_so(tmp_path):
  """Nothing is invented: there is no figure, and no row for what is not known."""
  text = card(str(make_run(tmp_path, data={"path": ""}).path))
  assert "# my-run" in text and "| memory system | infini, linear |" in text
  assert "Nothing was trained in this run" in text and "Nothing was evaluated" in text
  for unknown in ("parameters |", "perplexity", "loss", "data", "started from", "None", "nan"):
    assert f"| {unknown}" not in text, unknown


def test_a_card_holds_the_figures_of_every_evaluation(tmp_path):
  run = make_run(tmp_path, data={"path": "jsonl:/home/me/books.jsonl"}, train={"steps": 9})
  lines = [
    {"step": s, "kind": "train", "loss": 3.0 - s / 10, "tokens_per_second": 1.0} for s in (1, 9)
  ]
  (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  evaluated(run, "perplexity/books", "perplexity", PERPLEXITY, PERPLEXITY | {"perplexity": 15.5})
  out = {"cells": [CELL | {"exact": 1}]}
  evaluated(run, "passkey/4096-tokens", "passkey", {"cells": [CELL]}, out)
  text = card(str(run.path), "## Use\n\n    a command")
  assert "## Use\n\n    a command\n\n## Model" in text
  for line in (
    "| parameters | 1,234,567 |",
    "| data | books.jsonl |",
    "| steps | 9 |",
    f"| tokens read | {9 * 8 * 2 * 16:,} |",
    "| training loss, last logged | 2.1000 |",
    "|  | with the memory | memory held empty |",
    "| perplexity | 12.250 | 15.500 |",
    "| tokens read | 4,321 |  |",
    "| tokens | depth | examples | with the memory | memory held empty |",
    "| 4,096 | 0.5 | 20 | 0.950 | 0.050 |",
    "Step 7, 2026-11-29, on 4 TPU v5e.",
    "    infini-jax eval --workdir=RUN --task=passkey",
  ):
    assert line in text, line
  assert str(tmp_path) not in text and "/home/me" not in text, "a card may be published"


def test_a_card_has_no_folder_of_this_machine(tmp_path):
  run = make_run(tmp_path)
  file = evaluated(run, "perplexity/books", "perplexity", PERPLEXITY)
  results = json.loads(file.read_text())
  corpus = {"name": "books", "path": f"text:{tmp_path}/books", "text": "ab", "fingerprint": "cd"}
  for number, where in enumerate((tmp_path, "~me", "gs://bucket")):
    results["corpus"] = corpus | {"path": f"text:{where}/books", "text": str(number)}
    results["command"] = (
      f"infini-jax eval --workdir={run.path} --config.data.path=jsonl:{where}/books,{where}/more/x"
      f" '--config.evaluation.document={where}/a.txt'"
    )
    place = run.path / "evaluation" / "perplexity" / f"books-{number}"
    place.mkdir()
    (place / "results.json").write_text(json.dumps(results))
  text = card(str(run.path))
  assert str(tmp_path) not in text and "~me" not in text
  assert "--config.data.path=jsonl:books,x '--config.evaluation.document=a.txt'" in text
  assert "corpus text:gs://bucket/books (text" in text and "jsonl:gs://bucket/books,gs:" in text


def test_a_benchmark_has_its_table(tmp_path):
  run = make_run(tmp_path)
  cell = {"task": "vt", "length": 4096, "samples": 2, "score": 87.5, "nulls": 0}
  memory = {"average": 68.75, "samples": 4, "tokens": 1234, "by_length": {"4096": 87.5}}
  memory["grid"] = [cell, cell | {"length": 8192, "score": 50.0}]
  evaluated(run, "ruler/g", "ruler", memory, memory | {"grid": [cell | {"score": 12.5}]})
  text = card(str(run.path))
  for line in (
    "4 samples, 1,234 tokens; scores of 100.",
    "| task | 4k | 8k | average | wAvg. (inc) | wAvg. (dec) |",
    "| vt | 87.50 | 50.00 | 68.75 |  |  |",
    "Memory held empty:",
    "| vt | 12.50 | 12.50 |",
  ):
    assert line in text, line


def test_names_are_no_tags(tmp_path):
  run = make_run(tmp_path / "<b>", data={"path": "text:/x/<i>.txt"})
  moved = run.path.rename(run.path.with_name("<img src=x>"))
  text = card(str(moved))
  assert "# \\<img src=x>" in text and "<" not in text.replace("\\<", "")


def test_a_card_replaces_an_older_one_and_no_other_file(tmp_path):
  run = make_run(tmp_path)
  assert write(str(run.path), None, quiet()) == run.path / "README.md"
  evaluated(run, "perplexity/books", "perplexity", PERPLEXITY)
  write(str(run.path), None, quiet())
  assert "12.250" in (run.path / "README.md").read_text()
  mine = tmp_path / "mine.md"
  mine.write_text("# What I found")
  with pytest.raises(InputError, match="exists, and holds something else") as error:
    write(str(run.path), str(mine), quiet())
  assert "\n" not in str(error.value) and mine.read_text() == "# What I found"


def test_a_broken_evaluation_is_named(tmp_path):
  run = make_run(tmp_path)
  file = evaluated(run, "passkey/4096-tokens", "passkey", {"cells": [{"length": "long"}]})
  with pytest.raises(InputError, match="cannot be shown .*; evaluate the task again") as error:
    card(str(run.path))
  assert str(file) in str(error.value)
  with pytest.raises(InputError, match="no run here"):
    card(str(tmp_path / "nothing"))
