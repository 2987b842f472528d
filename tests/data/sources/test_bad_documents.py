"""Documents that cannot be read stop the work with their name, or are left out and counted."""

import gzip
import io
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.data.sources import open_corpus
from infini_jax.data.store.store import Store
from tests.data.sources.test_files import lines, write_parquet
from tests.data.sources.tfds_fakes import pg19, write_tfds

GOOD = [f"good {i}" for i in range(40)]


def folder(root):
  for i, text in enumerate(GOOD):
    (root / f"{i:02d}.txt").write_text(text)
  (root / "latin.txt").write_bytes(b"caf\xe9")
  (root / "binary.txt").write_bytes(b"a\0b")
  (root / "cut.txt.gz").write_bytes(gzip.compress(b"a long text " * 99)[:-9])
  (root / "gone.txt").symlink_to(root / "nowhere.txt")
  return f"text:{root}", 4, "latin.txt|binary.txt|cut.txt.gz|gone.txt"


def jsonl(root):
  rows = [{"text": text} for text in GOOD]
  bad = ['{"text": 3}', "{not json}", '["a list"]', '{"other": "x"}']
  (root / "a.jsonl").write_text(lines(rows[:20]) + "\n".join(bad) + "\n" + lines(rows[20:]))
  (root / "b.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
  (root / "c.jsonl.gz").write_bytes(gzip.compress(lines(rows[:1]).encode() * 9)[:-12])
  return f"jsonl:{root}", 6, "a.jsonl:|b.jsonl:0|c.jsonl.gz"


def parquet(root):
  good = [{"text": text} for text in GOOD]
  write_parquet(root / "a.parquet", good)
  column = pa.array([b"good", b"caf\xe9", b"good"], pa.binary()).view(pa.string())
  pq.write_table(pa.table({"text": column}), root / "b.parquet")
  (root / "c.parquet").write_bytes((root / "a.parquet").read_bytes()[:-7])
  return f"parquet:{root}", 2, "c.parquet|row 1 is not UTF-8"


def tfds(root):
  texts = {"train": GOOD, "validation": GOOD[:3], "test": GOOD[:3]}
  write_tfds(root, "pg19", {split: pg19(own) for split, own in texts.items()})
  (file,) = root.glob("pg19/*/*-validation*")
  file.unlink()
  return f"tfds:pg19?data_dir={root}", 1, "validation"


@pytest.mark.parametrize("make", [folder, jsonl, parquet, tfds])
def test_they_are_left_out_and_counted_or_stop_with_their_name(tmp_path, make):
  root = tmp_path / "corpus"
  root.mkdir()
  spec, bad, named = make(root)
  with pytest.raises(InputError, match=named) as error:
    prepare(spec, tmp_path / "stopped", "bytes")
  assert "\n" not in str(error.value)
  said = io.StringIO()
  skipping = f"{spec}{'&' if '?' in spec else '?'}bad=skip"
  store = prepare(skipping, tmp_path / "skipped", "bytes", console=Console(file=said, width=500))
  documents = [store.split(split) for split in store.splits]
  texts = [
    store.tokenizer.decode(d.read(i, 0, int(d.tokens[i]))) for d in documents for i in range(len(d))
  ]
  assert set(GOOD) <= set(texts), "a good document beside a bad one was lost"
  assert sum(totals["bad"] for totals in store.splits.values()) == bad
  line = next(line for line in said.getvalue().splitlines() if "cannot be read" in line)
  assert re.match(rf"left out: {bad} documents that cannot be read, the first: .*({named})", line)
  assert Store.open(tmp_path / "skipped").splits == store.splits


def test_a_damaged_record_costs_only_the_records_of_its_block(tmp_path):
  texts = {split: GOOD for split in ("train", "validation", "test")}
  write_tfds(tmp_path, "pg19", {split: pg19(own) for split, own in texts.items()})
  (file,) = tmp_path.glob("pg19/*/*-train*")
  whole = file.read_bytes()
  spec = f"tfds:pg19?data_dir={tmp_path}"
  count = lambda: sum(len(list(part.read(True))) for part in open_corpus(f"{spec}&bad=skip").parts)
  everything = count()
  noticed = 0
  for at in np.linspace(100, len(whole) - 100, 12).astype(int).tolist():
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
    try:
      found = count()
    except InputError as error:  # of the file's own index
      assert file.name in str(error)
      continue
    assert found <= everything
    noticed += found < everything
  assert noticed, "a flipped bit in a record changed nothing"


def test_an_unknown_choice_is_named_with_the_choices(tmp_path):
  folder(tmp_path)
  with pytest.raises(InputError, match=r"\?bad=ignore: choose stop or skip"):
    open_corpus(f"text:{tmp_path}?bad=ignore")


def test_a_corpus_of_bad_documents_alone_is_refused(tmp_path):
  for split in ("train", "validation", "test"):
    (tmp_path / split).mkdir()
    (tmp_path / split / "a.txt").write_bytes(b"\xff")
  with pytest.raises(InputError, match="no training tokens"):
    prepare(f"text:{tmp_path}?bad=skip", tmp_path.with_name("out"), "bytes")
  shutil.rmtree(tmp_path.with_name("out"))
