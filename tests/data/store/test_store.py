import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data.sources import list_documents, read_text
from infini_jax.data.store.shards import BLOCK, Entry, Shard, ShardWriter, shards_of
from infini_jax.data.store.store import Documents, Store
from infini_jax.files import left_over


@pytest.fixture
def copy(store, tmp_path):
  shutil.copytree(store.folder, tmp_path / "copy")
  return tmp_path / "copy"


def write_shard(folder, number, entries, dtype):
  writer = ShardWriter(Shard(folder, number), dtype)
  for entry in entries:
    writer.add(entry)
  writer.close()


def documents_of(folder, shards, dtype="<u2", first=0):
  return Documents({"": shards_of(folder, shards, first)}, dtype)


def long_documents(folder, dtype="<u2", top=60_000):
  """Two shards of documents around the sizes of a block."""
  rng = np.random.default_rng(0)
  sizes = [[1, BLOCK, BLOCK + 1], [3 * BLOCK - 1, 5, 2 * BLOCK]]
  ids = [[rng.integers(0, top, size) for size in shard] for shard in sizes]
  for number, shard in enumerate(ids):
    entries = [Entry(f"{number}/{i}", x, 2 * len(x), 3, 4) for i, x in enumerate(shard)]
    write_shard(folder, number, entries, dtype)
  return documents_of(folder, 2, dtype), sum(ids, [])


def test_store_holds_the_text_of_every_document(store, corpus):
  for split, sources in list_documents(str(corpus)).items():
    documents = store.split(split)
    assert documents.names == [source.name for source in sources]
    assert len(documents) == store.splits[split]["documents"]
    for i, source in enumerate(sources):
      text = read_text(source)
      ids = documents.read(i, 0, int(documents.tokens[i]))
      assert store.tokenizer.decode(ids) == text
      assert documents.bytes[i] == len(text.encode())
      assert documents.words[i] == len(text.split())
    for name in ("tokens", "bytes", "words"):
      assert getattr(documents, name).dtype == np.int64
      assert getattr(documents, name).sum() == store.splits[split][name]


@pytest.mark.parametrize(("dtype", "top"), [("<u2", 2**16), ("<u4", 200_000)])
def test_any_slice_across_blocks_and_shards(tmp_path, dtype, top):
  documents, ids = long_documents(tmp_path, dtype, top)
  assert documents.names == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
  assert documents.tokens.tolist() == [len(x) for x in ids]
  rng = np.random.default_rng(1)
  for document, x in enumerate(ids):
    edges = {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(x)} & set(range(len(x) + 1))
    slices = [(a, b) for a in edges for b in edges if a <= b]
    slices += [tuple(sorted(rng.integers(0, len(x) + 1, 2))) for _ in range(5)]
    for start, stop in slices:
      read = documents.read(document, start, stop)
      assert read.dtype == np.int32 and np.array_equal(read, x[start:stop])
  for start, stop in ((-1, 1), (0, 2), (1, 0)):
    with pytest.raises(IndexError, match="'0/0', which has 1"):
      documents.read(0, start, stop)


def test_pickles_small_and_reads_in_threads(tmp_path):
  documents, ids = long_documents(tmp_path)
  documents.read(0, 0, 1)
  data = pickle.dumps(documents)
  assert len(data) < 1000, "readers and indices must be loaded anew, not pickled"
  documents = pickle.loads(data)
  jobs = [(d, s) for d in (2, 3, 5) for s in range(0, BLOCK - 500, 999)] * 3
  with ThreadPoolExecutor(8) as pool:
    results = pool.map(lambda job: documents.read(job[0], job[1], job[1] + 500), jobs)
    for (document, start), read in zip(jobs, results, strict=True):
      assert np.array_equal(read, ids[document][start : start + len(read)])


def test_no_more_than_a_few_shards_are_held_open(tmp_path, monkeypatch, rng):
  monkeypatch.setattr("infini_jax.data.store.store.OPEN", 2)
  for number in range(7):
    write_shard(tmp_path, number, [Entry("a", np.arange(number + 3), 1, 1, 1)], "<u2")
  documents = documents_of(tmp_path, 7)
  for document in rng.integers(0, 7, 60).tolist():
    assert documents.read(document, 0, document + 3).tolist() == list(range(document + 3))
    assert len(documents._readers) <= 2, "thousands of shards would be open at a time"
  some = documents_of(tmp_path, 2, first=4)
  assert some.tokens.tolist() == [7, 8] and some.read(1, 6, 8).tolist() == [6, 7]
  assert pickle.loads(pickle.dumps(some)).tokens.tolist() == [7, 8]


def test_shard_of_an_older_program_has_totals_too(tmp_path):
  write_shard(
    tmp_path, 0, [Entry("a", np.arange(3), 7, 2, 5), Entry("b", np.arange(1), 2, 1, 2)], "<u2"
  )
  shard = Shard(tmp_path, 0)
  assert shard.totals().tolist() == [2, 4, 9, 3, 7, 0, 0, 0] and shard.first("empty") == ""
  with np.load(shard.index_file) as index:
    np.savez(tmp_path / "old.npz", names=index["names"], counts=index["counts"])
  (tmp_path / "old.npz").rename(shard.index_file)
  assert shard.totals().tolist() == [2, 4, 9, 3, 9, 0, 0, 0], "for want of characters, bytes"
  assert shard.first("empty") == "" and shard.names() == ["a", "b"]


def test_names_of_all_kinds(tmp_path):
  names = ["a b", "naïve\n日本", "\udcff undecodable", ""]
  write_shard(tmp_path, 0, [Entry(n, np.ones(1, int), 1, 1, 1) for n in names], "<u2")
  assert documents_of(tmp_path, 1).names == names


def test_shard_without_documents(tmp_path):
  write_shard(tmp_path, 0, [], "<u2")
  write_shard(tmp_path, 1, [Entry("a", np.arange(3), 1, 1, 1)], "<u2")
  documents = documents_of(tmp_path, 2)
  assert documents.names == ["a"] and documents.read(0, 1, 3).tolist() == [1, 2]
  assert len(documents_of(tmp_path, 0)) == 0
  none = {"a": shards_of(tmp_path, 1), "b": shards_of(tmp_path, 1)}
  assert len(Documents(none, "<u2")) == 0, "of a mixture, too"


def test_a_shard_that_fails_leaves_nothing_behind(tmp_path):
  with pytest.raises(InputError), ShardWriter(Shard(tmp_path, 0), "<u2") as writer:
    writer.add(Entry("a", np.arange(5), 5, 1, 5))
    assert len(list(tmp_path.iterdir())) == 1
    raise InputError("a document that cannot be encoded")
  assert list(tmp_path.iterdir()) == []


def test_a_shard_that_another_host_has_finished_is_used(tmp_path):
  entry = Entry("a", np.arange(5), 5, 1, 5)
  with ShardWriter(Shard(tmp_path, 0), "<u2") as writer:
    writer.add(entry)
    write_shard(tmp_path, 0, [entry], "<u2")
    for file in left_over(tmp_path):  # the other host removes temporary files
      file.unlink()
    writer.close()
  assert documents_of(tmp_path, 1).read(0, 0, 5).tolist() == [0, 1, 2, 3, 4]
  with pytest.raises(FileNotFoundError), ShardWriter(Shard(tmp_path, 1), "<u2") as writer:
    writer.add(entry)
    for file in left_over(tmp_path):  # and no host has finished the shard
      file.unlink()
    writer.close()


def test_a_store_opened_again_is_equal(store):
  again = Store.open(str(store.folder))
  assert (again.spec, again.source, again.fingerprint) == ("bytes", store.source, store.fingerprint)
  assert again.splits == store.splits


def test_wrong_stores_are_refused(copy, tmp_path):
  def edit(**changes):
    description = json.loads((copy / "store.json").read_text()) | changes
    (copy / "store.json").write_text(json.dumps(description))

  def fails(match, call=lambda: Store.open(copy)):
    with pytest.raises(InputError, match=match) as error:
      call()
    assert "\n" not in str(error.value)

  fails("split 'dev': choose one of train", lambda: Store.open(copy).split("dev"))
  fails("not a token store", lambda: Store.open(tmp_path / "none"))
  fails("not a token store", lambda: Store.open(tmp_path))
  edit(format=99)
  fails("format 99.*update infini_jax")
  edit(format=0)
  fails("format 0.*prepare it again")
  (copy / "store.json").write_text("{")
  fails("not of a token store")
  (copy / "store.json").write_text('{"format": 1}')
  fails("lacks 'source'")
  (copy / "store.json").unlink()
  fails("not complete; run the command")


@pytest.mark.parametrize(
  "field, value",
  [
    ("dtype", float("nan")),
    ("dtype", "<f4"),
    ("source", None),
    ("fingerprint", 1),
    ("splits", []),
    ("splits", {"train": {"shards": -1}}),
    ("splits", {"train": {"shards": 2**70}}),
    ("splits", {"train": {"shards": 1, "tokens": "a"}}),
    ("shards", {"train": [0.5]}),
    ("summaries", 1),
  ],
  ids=str,
)
def test_a_description_without_a_hash_has_fields_of_their_kinds(copy, field, value):
  """As an older program wrote it."""
  description = json.loads((copy / "store.json").read_text())
  del description["sha256"]
  (copy / "store.json").write_text(json.dumps(description))
  assert Store.open(copy).dtype == "<u2"
  (copy / "store.json").write_text(json.dumps(description | {field: value}))
  with pytest.raises(InputError, match=rf"store\.json: '{field}' is not of its kind"):
    Store.open(copy)


def test_damaged_files_are_refused(copy):
  records = copy / "train" / "00000.array_record"
  good = records.read_bytes()
  for bad in (b"", b"x" * 100, good[: len(good) // 2], b"x" * len(good)):
    records.write_bytes(bad)
    documents = Store.open(copy).split("train")
    with pytest.raises(InputError, match="00000.array_record: missing or damaged"):
      documents.read(0, 0, 1)
  records.unlink()
  with pytest.raises(InputError, match="00000.array_record: missing or damaged"):
    Store.open(copy).split("train").read(0, 0, 1)
  (copy / "train" / "00000.npz").write_bytes(b"PK\x03\x04")
  with pytest.raises(InputError, match="00000.npz: missing or damaged"):
    Store.open(copy).split("train")


@pytest.mark.parametrize("place, value", [(8, 1), (10, 99)], ids=["password", "compression"])
def test_changed_flags_of_an_index_are_damage(copy, place, value):
  """Of the first entry, in the directory at the end of the file and at the entry."""
  file = copy / "train" / "00000.npz"
  content = bytearray(file.read_bytes())
  for begin, after in ((content.index(b"PK\x01\x02"), place), (0, place - 2)):
    content[begin + after] = value
  file.write_bytes(content)
  with pytest.raises(InputError, match="00000.npz: missing or damaged"):
    Store.open(copy).split("train")
