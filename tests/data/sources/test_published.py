"""Rows of RULER's and BABILong's form: their tasks and lengths, their texts, and refusals."""

import importlib.util
import json

import pytest

from infini_jax.config import InputError
from infini_jax.data.sources.published import BABILONG, RULER, Published, named

PROMPT = "{input}\nQ: {question}\nA:"
ROW = {"index": 0, "input": "A text. The key is", "outputs": ["42", "7"], "length": 900}
ASKED = {"input": "Ann went home. ", "question": "Where is Ann? ", "target": "home"}


def write(file, *rows):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return file


@pytest.mark.parametrize(
  "words, found",
  [
    (("validation", "niah_single_1", "data", "4096", "synthetic"), ("niah_single_1", 4096)),
    (("niah_single_1", "131072"), ("niah_single_1", 131072)),
    (("vt", "128K"), ("vt", 131072)),
    (("4k", "qa1", "data"), ("qa1", 4096)),
    (("qa20", "0k"), ("qa20", 0)),
    (("qa1", "1M"), ("qa1", 2**20)),
    (("cwe", "2026", "1000"), ("cwe", None)),
  ],
)
def test_a_path_names_the_task_and_the_length(words, found):
  assert named(words) == found


def test_the_folders_of_a_grid_are_read_in_order(tmp_path):
  for length in (4096, 8192):
    for task in ("niah_single_1", "vt"):
      write(tmp_path / str(length) / "data" / task / "validation.jsonl", ROW, ROW, ROW)
  rows = Published(f"jsonl:{tmp_path}", RULER, PROMPT, limit=2)
  assert rows.runs == [
    (task, length, 2) for length in (4096, 8192) for task in ("niah_single_1", "vt")
  ]
  samples = list(rows.samples())
  assert samples == list(rows.samples()), "they can be read again"
  first = samples[0]
  assert (first.text, first.targets, first.question) == (ROW["input"], ("42", "7"), "")
  assert first.place.endswith("4096/data/niah_single_1/validation.jsonl, line 1")
  one = Published(f"jsonl:{tmp_path}/8192/data/vt/validation.jsonl", RULER, PROMPT)
  assert one.runs == [("vt", 8192, 3)]
  assert one.text != rows.text


def test_rows_without_a_folder_of_a_length_go_where_they_fit(tmp_path):
  """As into the lengths of RULER's grid; the text may end in a part of its own."""
  rows = [{**ROW, "length": n} for n in (900, 4096, 5000)]
  file = write(tmp_path / "qa_1.jsonl", *rows, {**ROW, "outputs": "one", "answer_prefix": " now:"})
  read = Published(f"jsonl:{file}", RULER, PROMPT)
  assert read.runs == [("qa_1", 4096, 2), ("qa_1", 8192, 1), ("qa_1", 4096, 1)]
  last = list(read.samples())[-1]
  assert last.text == ROW["input"] + " now:" and last.targets == ("one",)


def test_babilong_is_read_from_lines_arrays_parquet_and_a_prompt(tmp_path):
  import pyarrow
  import pyarrow.parquet

  write(tmp_path / "a" / "qa1" / "0k.jsonl", ASKED)
  array = tmp_path / "b" / "qa1" / "0k.json"
  array.parent.mkdir(parents=True)
  array.write_text(json.dumps([ASKED]))
  table = tmp_path / "c" / "0k" / "qa1.parquet"
  table.parent.mkdir(parents=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**ASKED, "index": 3}]), table)
  for spec in (f"jsonl:{tmp_path}/a", f"jsonl:{array}", f"parquet:{table}"):
    rows = Published(spec, BABILONG, PROMPT)
    (sample,) = rows.samples()
    assert rows.runs == [("qa1", 0, 1)]
    assert sample.text == "Ann went home.\nQ: Where is Ann?\nA:"
    assert (sample.question, sample.targets) == (ASKED["question"], ("home",))
  prompt = tmp_path / "prompt.txt"
  prompt.write_text("<context>{input}</context> {question}\n")
  rows = Published(f"jsonl:{array}?prompt={prompt}&tokens=7", BABILONG, PROMPT)
  assert next(rows.samples()).text == "<context>Ann went home.</context> Where is Ann?"
  assert rows.tokens == 7


@pytest.mark.parametrize("begin", ["\ufeff", "\n", "\ufeff\n \n"])
@pytest.mark.parametrize("array", [True, False])
def test_a_file_may_begin_with_a_mark_or_with_empty_lines(tmp_path, begin, array):
  file = tmp_path / "4k" / "qa1.json"
  file.parent.mkdir()
  rows = [ASKED, ASKED]
  text = json.dumps(rows) if array else "\n\n".join(map(json.dumps, rows))
  file.write_text(begin + text, "utf-8")
  assert Published(f"jsonl:{file}", BABILONG, PROMPT).runs == [("qa1", 4096, 2)]


def test_a_text_may_hold_the_words_of_a_prompt(tmp_path):
  row = {**ASKED, "input": "He wrote {question} and {input}.", "question": "What is {input}?"}
  (sample,) = Published(
    f"jsonl:{write(tmp_path / '4k' / 'qa1.jsonl', row)}", BABILONG, PROMPT
  ).samples()
  assert sample.text == "He wrote {question} and {input}.\nQ: What is {input}?\nA:"


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="pip install -e .[hf]")
def test_a_data_set_has_lengths_as_configs_and_tasks_as_splits(tmp_path):
  (tmp_path / "README.md").write_text(
    "---\nconfigs:\n"
    + "".join(
      f"- config_name: {n}\n  data_files:\n"
      + "".join(f"  - split: {task}\n    path: {n}/{task}.jsonl\n" for task in ("qa1", "qa2"))
      for n in ("0k", "4k")
    )
    + "---\n"
  )
  for n in ("0k", "4k"):
    for task in ("qa1", "qa2"):
      write(tmp_path / n / f"{task}.jsonl", ASKED, ASKED)
  rows = Published(f"hf:{tmp_path}", BABILONG, PROMPT, limit=1)
  assert rows.runs == [(task, n, 1) for n in (0, 4096) for task in ("qa1", "qa2")]
  rows = Published(f"hf:{tmp_path}?config=4k", BABILONG, PROMPT)
  assert rows.runs == [("qa1", 4096, 2), ("qa2", 4096, 2)]


def test_wrong_files_are_one_line_with_the_remedy(tmp_path):
  good = write(tmp_path / "4k" / "qa1.jsonl", ASKED)
  wrong = {
    "no.jsonl": [{"input": "a"}],
    "kind.jsonl": [{**ROW, "input": 3}],
    "empty.jsonl": [{**ROW, "input": " "}],
    "none.jsonl": [{**ROW, "outputs": []}],
    "blank.jsonl": [{**ROW, "outputs": [" "]}],
    "null.jsonl": [{**ROW, "outputs": ["42", None]}],
    "lists.jsonl": [{**ROW, "outputs": [["42"]]}],
    "word.jsonl": [{**ROW, "length": "4k"}],
    "nan.jsonl": [{**ROW, "length": float("nan")}],
    "unsaid.jsonl": [{"input": "a", "outputs": ["b"]}],
  }
  files = {name: write(tmp_path / name, *rows) for name, rows in wrong.items()}
  unasked = write(tmp_path / "8k" / "qa1.jsonl", {**ASKED, "question": " "})
  unanswered = write(tmp_path / "16k" / "qa1.jsonl", {**ASKED, "target": ""})
  (tmp_path / "text.jsonl").write_text("no JSON\n")
  (tmp_path / "prompt.txt").write_text("{input}")
  for spec, form, message in (
    (str(tmp_path), RULER, "the rows of RULER are read from jsonl:FILES"),
    (f"jsonl:{tmp_path}/nowhere", RULER, "no file matches"),
    (
      f"jsonl:{files['no.jsonl']}",
      RULER,
      "line 1: has no field 'outputs'; a row of RULER has input",
    ),
    (f"jsonl:{files['kind.jsonl']}", RULER, "has int in the field 'input'"),
    (f"jsonl:{files['empty.jsonl']}", RULER, "its input is empty"),
    (f"jsonl:{files['none.jsonl']}", RULER, "its outputs are empty"),
    (f"jsonl:{files['blank.jsonl']}", RULER, "its outputs are empty"),
    (f"jsonl:{files['null.jsonl']}", RULER, "its outputs are not a list of texts"),
    (f"jsonl:{files['lists.jsonl']}", RULER, "its outputs are not a list of texts"),
    (f"jsonl:{files['word.jsonl']}", RULER, "its field 'length' is '4k'; put the file into"),
    (f"jsonl:{files['nan.jsonl']}", RULER, "its field 'length' is nan; put the file into"),
    (f"jsonl:{files['unsaid.jsonl']}", RULER, "its field 'length' is None; put the file into"),
    (f"jsonl:{unasked}", BABILONG, "its question is empty"),
    (f"jsonl:{unanswered}", BABILONG, "its target is empty"),
    (f"jsonl:{tmp_path}/text.jsonl", RULER, "is not JSON"),
    (f"jsonl:{good}", RULER, "has no field 'outputs'"),
    (f"jsonl:{files['no.jsonl']}", BABILONG, "has no field 'question'; a row of BABILong has"),
    (f"jsonl:{write(tmp_path / 'x.jsonl', ASKED)}", BABILONG, "no task and length in its path"),
    (f"jsonl:{good}?tokens=many", BABILONG, "tokens=many: give a number"),
    (f"jsonl:{good}?prompt={tmp_path}/none", BABILONG, "cannot be read"),
    (f"jsonl:{good}?prompt={tmp_path}/prompt.txt", BABILONG, "does not hold {question}"),
    (f"jsonl:{good}?text=input", BABILONG, "option 'text=input' is not one of"),
  ):
    with pytest.raises(InputError, match=message) as error:
      Published(spec, form, PROMPT)
    assert "\n" not in str(error.value)
