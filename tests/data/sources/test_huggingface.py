"""Data sets of the `datasets` package; without it, one line says what to install."""

import importlib.util
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infini_jax.data.sources import base, huggingface, open_corpus
from tests.data.sources.test_files import by_split, fails, records, texts


class Rows:
  """The methods of `datasets.Dataset` that the package uses."""

  def __init__(self, rows):
    self._rows = rows
    self.column_names, self.selected = list(rows[0]), []
    self.info = types.SimpleNamespace(dataset_size=None)

  def __len__(self):
    return len(self._rows)

  def select_columns(self, names):
    self.selected.append(names)
    return self

  def with_format(self, kind):
    assert kind == "arrow", "any other decodes"
    return self

  def __getitem__(self, index):
    names = self.selected[-1]
    return pa.Table.from_pylist([{name: row[name] for name in names} for row in self._rows[index]])


@pytest.fixture
def loads(monkeypatch):
  """Replaces the package `datasets` by one that loads the rows of a test."""

  def put(load):
    module = types.ModuleType("datasets")
    module.load_dataset, module.disable_progress_bars = load, lambda: None
    monkeypatch.setitem(sys.modules, "datasets", module)
    huggingface._load.cache_clear()

  yield put
  huggingface._load.cache_clear()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  huggingface._load.cache_clear()
  fails("hf:pg19", r"needs the package datasets: pip install -e '.\[hf\]'")


def test_rows_are_complete_for_any_cuts(loads, rng, monkeypatch):
  splits = {name: texts(rng, 300) for name in ("train", "dev", "test", "unsupervised")}
  asked = []

  def load(name, config):
    asked.append((name, config))
    return {split: Rows([{"body": t, "n": 3} for t in own]) for split, own in splits.items()}

  loads(load)
  monkeypatch.setattr(base, "SMALLEST", 200_000)
  corpus = open_corpus("hf:some/books?config=v1&text=body")
  assert asked == [("some/books", "v1")] and len(corpus.parts) > 3
  assert by_split(corpus) == {
    "train": splits["train"],
    "validation": splits["dev"],
    "test": splits["test"],
  }
  assert len({record.name for record in records(corpus)}) == 900
  other = open_corpus("hf:some/books?config=v1&text=body&train=unsupervised")
  assert by_split(other)["train"] == splits["unsupervised"]
  fails("hf:some/books?config=v1", r"no field 'text'; name one of body, n with \?text=FIELD")
  fails("hf:some/books?config=v1&text=n", "train:0|dev:0.*field 'n' holds int")
  fails("hf:some/books?config=v1&text=body&test=x", "no split 'x'; choose one of train, dev, test")


def test_an_error_of_the_package_is_reported_in_one_line(loads):
  def load(name, config):
    raise ValueError("BuilderConfig 'x'\nnot found")

  loads(load)
  fails("hf:books?config=x", "datasets says: BuilderConfig 'x' not found")

  def load(name, config):
    raise ValueError("while generating") from OSError("in row\n3")

  loads(load)
  fails("hf:books", "datasets says: while generating: in row 3$")


def test_only_the_fields_asked_for_are_read(loads):
  rows = Rows([{"body": f"t{i}", "image": object()} for i in range(40)])
  loads(lambda name, config: {"train": rows})
  found = records(open_corpus("hf:books?text=body"))
  assert [r.text for r in found] == [f"t{i}" for i in range(40)]
  assert all(names == ["body"] for names in rows.selected)


real = pytest.mark.skipif(
  not importlib.util.find_spec("datasets"), reason="datasets is not installed"
)


@real
def test_the_real_package_reads_a_folder(tmp_path, rng, monkeypatch):
  own = texts(rng, 50)
  (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in own))
  huggingface._load.cache_clear()
  found = by_split(open_corpus(f"hf:{tmp_path}"))
  assert sorted(sum(found.values(), [])) == sorted(own)


@real
def test_the_real_package_decodes_no_picture_and_reads_a_file_once(tmp_path, monkeypatch):
  """The column of pictures is empty. The file has a second name by a link."""
  pictures = [{"bytes": b"no picture", "path": None}] * 30
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  own = [f"row {i}" for i in range(30)]
  table = pa.table({"text": own, "image": pa.array(pictures, kind)})
  features = {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
  metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
  folder = tmp_path / "a,b?"
  folder.mkdir()
  pq.write_table(table.replace_schema_metadata(metadata), folder / "train-[0].parquet")
  (folder / "train-1.parquet").symlink_to("train-[0].parquet")
  (folder / "round").symlink_to(".")
  (folder / "train-2.PARQUET").touch()
  huggingface._load.cache_clear()
  corpus = open_corpus(f"hf:{tmp_path}/a\\,b\\?")
  assert sorted(record.text for record in records(corpus)) == sorted(own)
  assert corpus.left_out == "left out: 1 files (1 .PARQUET)"
  fails(f"hf:{tmp_path}/a\\,b\\??text=image", "field 'image' holds dict, no text")
