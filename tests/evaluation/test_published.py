"""Published tasks: every answer is the one that a session writes alone; the table of a grid."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from infini_jax.config import InputError
from infini_jax.data import open_prepared
from infini_jax.evaluation import published_tables
from infini_jax.evaluation.knock_out import EMPTY, INTACT
from infini_jax.evaluation.published import Answer, Grid, Scored, averages, most_tokens, weighted
from infini_jax.evaluation.published_scores import cleaned, contained
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.engine import Engine
from infini_jax.parallel import make_mesh
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import open_dataset
from tests.evaluation import ruler_form
from tests.tiny import config, fake_params, quiet

ROOT = Path(__file__).parent.parent.parent
LENGTHS = (1024, 2048)


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
  """Three samples of two tasks and two lengths, in the form of RULER."""
  c, workdir, _ = trained
  store = open_prepared(c.data.path, Workdir(workdir).store)
  folder = tmp_path_factory.mktemp("ruler")
  return ruler_form.write(folder, c, store, LENGTHS, 3, ("niah_multivalue", "qa_1"))


def test_every_answer_is_what_a_session_writes_alone(files, trained):
  c = config(
    f"jsonl:{files}?tokens=5",
    model={"rule": "delta"},
    evaluation={"lanes": 2, "max_documents": 2},
    mesh={"data": 1},
  )
  tokenizer = Workdir(trained[1]).load_tokenizer()
  source = open_dataset(c, None, quiet(), "ruler", tokenizer, files)
  params, mesh, seen = fake_params(c.model), make_mesh(c.mesh, jax.devices()[:1]), []
  with jax.set_mesh(mesh):
    grid = Grid(c, mesh, source)
    found = grid.run(params, INTACT, advance=lambda done, text: seen.append(done))
    empty = grid.run(params, EMPTY)
  assert seen[-1] == grid.chunks == 4 and len(found.answers) == len(empty.answers) == 8
  run, N = OpenedRun(Engine(c, params), tokenizer), c.model.segment_length
  for answers, dropped in ((found.answers, 0), (empty.answers, 1)):
    for answer, sample in zip(answers, source.samples(), strict=True):
      ids = source.prompt(sample)
      assert answer.tokens == len(ids) and ids[0] == tokenizer.bos
      session = Session(run, begin=False)
      session.read([ids[(len(ids) - 1) // N * N * dropped :]], marked=True)
      own = "".join(piece.text for piece in session.generate(5, temperature=0, top_p=1.0))
      assert answer.written == cleaned(own)
      assert answer.score == contained(cleaned(own), sample.targets, part=sample.task == "qa_1")
  assert [cell.samples for cell in found.cells] == [2] * 4


def answers(**scores):
  made = []
  for cell, values in scores.items():
    task, _, length = cell.rpartition("_")
    made += [Answer("", task, int(length), 9, "x" * bool(v), "", v) for v in values]
  return Scored(tuple(made), 9 * len(made), 1.0)


def test_the_table_has_the_published_layout(tmp_path):
  scored = answers(
    vt_4096=[1.0, 0.5], niah_single_2_4096=[1.0], niah_single_10_4096=[0.0],
    vt_8192=[0.0, 0.0], niah_single_2_8192=[1.0], niah_single_10_8192=[0.5],
  )  # fmt: skip
  assert published_tables.rows_of(scored.cells) == [
    ["task", "4k", "8k", "average", "wAvg. (inc)", "wAvg. (dec)"],
    ["niah_single_2", "100.00", "100.00", "100.00", "", ""],
    ["niah_single_10", "0.00", "50.00", "25.00", "", ""],
    ["vt", "75.00", "0.00", "37.50", "", ""],
    ["average", "58.33", "50.00", "54.16", "52.78", "55.55"],
  ]
  assert averages(scored.cells) == {4096: 58.33, 8192: 50.0}
  assert weighted({4096: 58.33}) == {}
  made = scored.to_dict()
  assert made["average"] == 54.16 and made["by_length"] == {"4096": 58.33, "8192": 50.0}
  file = published_tables.draw({"memory": scored}, {}, tmp_path)["table"]
  assert list(csv.reader(file.open())) == published_tables.rows_of(scored.cells)
  scored = answers(**{"a, b_2000000": [1.0]})
  file = published_tables.draw({"memory": scored}, {}, tmp_path)["table"]
  assert [*csv.reader(file.open())] == published_tables.rows_of(scored.cells)
  scored = answers(vt_4096=[1.0, 0.5])
  published_tables.draw({"memory": scored}, {}, tmp_path)
  lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
  assert len(lines) == len(scored.answers) and json.loads(lines[0])["task"] == "vt"


def test_the_table_is_printed_for_every_ablation_and_says_if_the_memory_does_not_help():
  memory, empty = answers(vt_4096=[1.0, 0.0], cwe_4096=[1.0]), answers(vt_4096=[1.0, 1.0])
  console, results = quiet(), {"task": "ruler", "step": 7}
  published_tables.show({"memory": memory, "empty": empty}, results, config(), console)
  said = " ".join(console.file.getvalue().split())
  assert "RULER" in said and "memory held empty" in said and "step 7" in said
  assert "1 to 2 samples a cell" in said and "for 1 samples nothing was written" in said
  for found, told in (
    ({"memory": memory, "empty": empty}, True),
    ({"memory": empty, "empty": memory}, False),
    ({"memory": memory}, False),
  ):
    console = quiet()
    published_tables.verdict(found, console)
    assert ("show no effect of the memory" in console.file.getvalue()) is told


def test_answers_have_the_published_lengths():
  assert [most_tokens(task) for task in ("niah_multikey_3", "vt", "cwe", "fwe", "qa_2", "qa3")] == [
    *(128, 30, 120, 50, 32, 15)
  ]
  assert most_tokens("another") == 0
  lengths = (0, 1024, 131072, 2**20, 10 * 2**20, 5000)
  assert [*map(published_tables.shown, lengths)] == ["0k", "1k", "128k", "1M", "10M", "5,000"]


def test_fields_that_do_not_fit_are_refused(files, trained):
  c = config(f"jsonl:{files}", evaluation={"knock_out": ("reads",)}, mesh={"data": 1})
  tokenizer = Workdir(trained[1]).load_tokenizer()
  source = open_dataset(c, None, quiet(), "ruler", tokenizer, files)
  mesh = make_mesh(c.mesh, jax.devices()[:1])
  with pytest.raises(
    InputError, match="knock_out='reads' with --task=ruler: samples are read whole"
  ):
    Grid(c, mesh, source)
  with pytest.raises(InputError, match="has no field 'question'"):
    open_dataset(c, None, quiet(), "babilong", tokenizer, files)


@pytest.mark.slow
def test_a_whole_grid_from_4k_to_128k_in_one_command(trained, tmp_path):
  """Eight tasks at RULER's six lengths, on a tiny run: one table."""
  c, workdir, _ = trained
  store = open_prepared(c.data.path, Workdir(workdir).store)
  lengths = [4096 << i for i in range(6)]
  folder = ruler_form.write(tmp_path / "ruler", c, store, lengths)
  done = subprocess.run(
    [sys.executable, "eval.py", f"--workdir={workdir}", "--task=ruler"]
    + [f"--config.data.path=jsonl:{folder}", "--config.mesh.data=1"]
    + ["--config.evaluation.lanes=1", "--config.evaluation.segments=64"],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (file,) = (workdir / "evaluation").glob("ruler/*/results.json")
  results = json.loads(file.read_text())
  grid = results["memory"]["grid"]
  assert {(cell["task"], cell["length"]) for cell in grid} == {
    (task, length) for task in ruler_form.TASKS for length in lengths
  }
  assert results["memory"]["tokens"] > sum(lengths) * len(ruler_form.TASKS) * 0.95
  header, *rows = csv.reader(file.with_name("table.csv").open())
  assert header[:7] == ["task", "4k", "8k", "16k", "32k", "64k", "128k"]
  assert len(rows) == len(ruler_form.TASKS) + 1
  assert "RULER, with the memory" in done.stdout and "128k" in done.stdout
