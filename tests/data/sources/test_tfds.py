"""TensorFlow Datasets by their official names, with local texts, without TensorFlow."""

import gzip
import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from infini_jax.config import SPLITS
from infini_jax.data import Store, prepare
from infini_jax.data.sources import base, open_corpus
from tests.data.sources.test_files import by_split, fails, records, texts
from tests.data.sources.tfds_fakes import pg19, write_tfds

BOOKS = Path(__file__).parents[4] / "shared" / "corpora" / "books"


@pytest.fixture(scope="module")
def books(tmp_path_factory):
  """pg19 as a user would have it: its folder, and the texts of its splits."""
  rng = np.random.default_rng()
  splits = {split: texts(rng, 90, 2000) for split in SPLITS}
  folder = tmp_path_factory.mktemp("tfds")
  write_tfds(folder, "pg19", {split: pg19(own) for split, own in splits.items()})
  return folder, splits


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_texts_are_complete_for_any_cuts(books, tmp_path, monkeypatch, file_format):
  folder, splits = books
  if file_format == "parquet":
    folder = tmp_path
    rows = {split: pg19(own) for split, own in splits.items()}
    write_tfds(folder, "pg19", rows, file_format)
  whole = open_corpus(f"tfds:pg19?data_dir={folder}")
  assert by_split(whole) == splits and whole.note == "" and not whole.summaries
  monkeypatch.setattr(base, "SMALLEST", 5000)
  cut = open_corpus(f"tfds:pg19?data_dir={folder}")
  assert len(cut.parts) > 6, "a weak test: nothing was cut"
  assert max(len(pickle.dumps(part)) for part in cut.parts) < 2000, "parts must pickle small"
  assert records(cut) == records(whole)
  names = [record.name for record in records(cut)]
  assert len(set(names)) == 270 and "test:17 Title 17" in names


def test_fields_of_known_data_sets_and_of_others(tmp_path):
  row = {"document": "a book", "summary": "a word", "n": 3, "ids": [1, 2]}
  splits = {"train": [row], "validation": [row], "test": [row]}
  write_tfds(tmp_path, "booksum", splits, config="book", version="1.0.0")
  write_tfds(tmp_path, "booksum", splits, config="chapter", version="1.0.0")
  write_tfds(tmp_path, "mine", splits)
  corpus = open_corpus(f"tfds:booksum/book?data_dir={tmp_path}")
  assert corpus.summaries and {(r.text, r.summary) for r in records(corpus)} == {
    ("a book", "a word")
  }
  corpus = open_corpus(f"tfds:mine?data_dir={tmp_path}&text=summary&name=n")
  assert not corpus.summaries and records(corpus)[0] == ("test", "test:0 3", "a word", "")
  mine = f"tfds:mine?data_dir={tmp_path}"
  fails(mine, r"no field 'text'; name one of .*document.* with \?text=FIELD")
  fails(
    f"{mine}&text=n", "field 'n' is not text; name one of (document|summary), (document|summary)"
  )
  fails(f"{mine}&text=ids", "field 'ids' is not text")
  fails(f"{mine}&text=document&test=dev", "no split 'dev'; choose one of train, validation, test")
  fails(f"tfds:booksum?data_dir={tmp_path}", "choose tfds:booksum/book, tfds:booksum/chapter")


def test_only_the_fields_asked_for_are_decoded(tmp_path):
  row = {"text": "a book", "n": 3, "image": io.BytesIO(b"no picture")}
  folder = tmp_path / "a,b? & c"
  write_tfds(folder, "pictured", {"train": [row], "validation": [row], "test": [row]})
  (folder / "round").symlink_to(".")
  spec = f"tfds:pictured?data_dir={tmp_path}/a,b? \\& c"
  assert [r.name for r in records(open_corpus(f"{spec}&name=n"))][0] == "test:0 3"
  fails(f"{spec}&text=image", "field 'image' is not text; name one of text")
  fails(f"{spec}&name=image", "field 'image' is not a name; take one text or number")
  fails(spec.replace("\\", ""), "option ' c' is not one of data_dir=.* put a backslash before")


def test_splits_of_other_names_and_versions(tmp_path):
  rows = [{"text": f"document {i}"} for i in range(2000)]
  write_tfds(tmp_path, "mine", {"full": rows, "dev": rows[:9]}, version="1.10.0")
  write_tfds(tmp_path, "mine", {"train": rows[:1]}, version="1.9.0")
  fails(f"tfds:mine?data_dir={tmp_path}", r"has no train split, only full, dev; .*\?train=NAME")
  found = by_split(open_corpus(f"tfds:mine?data_dir={tmp_path}&train=full"))
  assert len(found["validation"]) == 9 and 30 < len(found["test"]) < 130
  assert sorted(sum(found.values(), [])) == sorted(row["text"] for row in rows + rows[:9])
  old = open_corpus(f"tfds:mine:1.9.0?data_dir={tmp_path}")
  assert [r.text for r in records(old)] == ["document 0"]
  assert "no validation and no test split" in old.note


def test_missing_and_unreadable_data_sets_are_reported_with_a_command(books, tmp_path, monkeypatch):
  where = f"data_dir={tmp_path}"
  build = f"tfds build {{}} --file_format=array_record --data_dir={tmp_path}"
  for name in ("pg19", "c4/en", "scientific_papers/arxiv", "wikipedia/20230601.en"):
    fails(f"tfds:{name}?{where}", "does not hold it; give .* " + build.format(name))
  fails(f"tfds:pg91?{where}", "Datasets has no 'pg91' .did you mean 'pg19'.*data_dir=")
  fails(f"tfds:pg19:0.0.7?data_dir={books[0]}", "does not hold it in version 0.0.7")
  fails(f"tfds:a:b?{where}", "write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3")
  fails(f"tfds:pg19?dir={tmp_path}", "option 'dir=.* is not one of data_dir=")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
  fails("tfds:pg19", f"{tmp_path}/elsewhere/pg19 does not hold it")

  made = write_tfds(tmp_path, "pg19", {"train": pg19(["a"])})
  description = json.loads((made / "dataset_info.json").read_text())
  (made / "dataset_info.json").write_text(json.dumps(description | {"fileFormat": "tfrecord"}))
  convert = f"tfds convert_format --dataset_version_dir={made} --out_file_format=array_record"
  fails(f"tfds:pg19?{where}", f"prepared as tfrecord, which only TensorFlow reads; .*{convert}")
  both = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
  (made / "dataset_info.json").write_text(json.dumps(description | both))
  # A process reads a description once; this one must be read again.
  sys.modules["infini_jax.data.sources.tfds"]._builder.cache_clear()
  assert [r.text for r in records(open_corpus(f"tfds:pg19?{where}"))] == ["a"]
  next(made.glob("*train*")).unlink()
  fails(f"tfds:pg19?{where}", "00000-of-00001 is missing; copy it too, or prepare it again")


def test_a_parquet_copy_that_lost_rows_is_refused(tmp_path):
  """tensorflow-datasets 4.9.10 writes such copies if a file has more than 100 rows."""
  rows = pg19(f"book {i}" for i in range(250))
  made = write_tfds(tmp_path, "pg19", {"train": rows[:90]}, "parquet")
  text = (made / "dataset_info.json").read_text()
  (made / "dataset_info.json").write_text(text.replace('"90"', '"250"'))
  fails(f"tfds:pg19?data_dir={tmp_path}", "holds 90 of 250 examples; .*file_format=array_record")


class Bucket(LocalFileSystem):
  """A bucket that is a folder: gs://NAME/x is ROOT/x."""

  protocol = ("gs", "gcs")
  root = ""
  opened: list[str] = []

  @classmethod
  def _strip_protocol(cls, path):
    path = re.sub("^(gs|gcs)://[^/]*", cls.root, str(path))
    return super()._strip_protocol(path)

  def _open(self, path, mode="rb", **kwargs):
    self.opened.append(path)
    return super()._open(path, mode, **kwargs)


def test_a_bucket_is_read_one_file_at_a_time(books, tmp_path, monkeypatch):
  folder, splits = books
  monkeypatch.setattr(Bucket, "root", str(folder))
  monkeypatch.setattr(Bucket, "opened", [])
  for protocol in Bucket.protocol:
    fsspec.register_implementation(protocol, Bucket, clobber=True)
  corpus = open_corpus("tfds:pg19?data_dir=gs://bucket")
  assert not [path for path in Bucket.opened if "array_record" in path], "nothing is read to open"
  assert by_split(corpus) == splits
  assert len([path for path in Bucket.opened if "array_record" in path]) == 3
  fails("tfds:pg91?data_dir=gs://bucket", "has no 'pg91'")

  def no_right(self, *args, **kwargs):
    raise PermissionError("403: bucket is\nnot yours")

  monkeypatch.setattr(Bucket, "info", no_right)
  monkeypatch.setattr(Bucket, "isdir", no_right)
  fails("tfds:pg19?data_dir=gs://other", "gs://other cannot be read .403.*; gs:// needs .* gcsfs")


# No connection may be opened, and TensorFlow must not be imported.
SCRIPT = """
import socket, sys

def refuse(*args):
  raise AssertionError(f"a connection was opened: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
from infini_jax import cli

if __name__ == "__main__":
  status = cli.main(sys.argv[1:])
  assert "tensorflow" not in sys.modules and "jax" not in sys.modules
  sys.exit(status)
"""


def command(tmp_path, *arguments):
  (tmp_path / "script.py").write_text(SCRIPT)
  line = [sys.executable, str(tmp_path / "script.py"), "prepare", *map(str, arguments)]
  return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_unknown_data_sets_are_reported_in_one_line_without_a_network(tmp_path):
  done = command(tmp_path, f"--source=tfds:pg91?data_dir={tmp_path}", f"--out={tmp_path / 'out'}")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
  assert "has no 'pg91'" in done.stderr and not (tmp_path / "out").exists()


def test_real_books_under_official_names_end_in_a_store(tmp_path, quiet):
  if not BOOKS.is_dir():
    pytest.skip("the books of ../shared/corpora are not here")
  splits = {}
  for split in SPLITS:
    files = sorted((BOOKS / split).glob("*.gz"))[:2]
    splits[split] = [gzip.decompress(file.read_bytes()).decode() for file in files]
  write_tfds(tmp_path, "pg19", {split: pg19(own) for split, own in splits.items()})
  pairs = {
    split: [{"document": text, "summary": text[:500]} for text in own]
    for split, own in splits.items()
  }
  write_tfds(tmp_path, "booksum", pairs, config="book", version="1.0.0")
  for name in ("pg19", "booksum/book"):
    out = tmp_path / "out" / name
    spec = f"tfds:{name}?data_dir={tmp_path}"
    done = command(
      tmp_path, f"--source={spec}", f"--out={out}", "--min-tokens=450000", "--workers=1"
    )
    assert done.returncode == 0, done.stderr
    assert "verified: " in done.stdout and "524,288 to 1,048,575" in done.stdout, done.stdout
    store = Store.open(out)
    for split, own in splits.items():
      documents = store.split(split)
      kept = [text for text in own if len(text.encode()) >= 450_000]
      read = [documents.read(i, 0, int(documents.tokens[i])) for i in range(len(documents))]
      assert [store.tokenizer.decode(ids) for ids in read] == kept
      assert store.splits[split]["short"] == len(own) - len(kept)
      assert store.splits[split]["characters"] == sum(map(len, kept))
    assert store.has_summaries == (name == "booksum/book")
  summaries = Store.open(tmp_path / "out/booksum/book").summaries("test")
  kept = [text for text in splits["test"] if len(text.encode()) >= 450_000]
  read = [summaries.read(i, 0, int(summaries.tokens[i])) for i in range(len(summaries))]
  assert [bytes(ids.astype(np.uint8)).decode() for ids in read] == [text[:500] for text in kept]


def test_any_number_of_processes_makes_the_same_store(books, tmp_path, quiet, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 20_000)
  monkeypatch.setattr("infini_jax.data.store.workers.SPAWN_ABOVE", 0)
  spec = f"tfds:pg19?data_dir={books[0]}"
  for workers in (1, 2):
    prepare(spec, tmp_path / str(workers), "train:300", workers=workers, console=quiet)
  files = [
    {f.name: f.read_bytes() for f in (tmp_path / n).glob("train/*.array_record")} for n in "12"
  ]
  assert len(files[0]) > 2 and files[0] == files[1]
