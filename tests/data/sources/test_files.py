"""JSON lines and Parquet: every document is read once, whole, with a unique name, in its split."""

import collections
import gzip
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.data.sources import base, open_corpus

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=30)


def records(corpus):
  return [record for part in pickle.loads(pickle.dumps(corpus.parts)) for record in part.read()]


def by_split(corpus):
  found = collections.defaultdict(list)
  for record in records(corpus):
    found[record.split].append(record.text)
  return dict(found)


def lines(rows):
  return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))


def zstd(data):
  return pa.Codec("zstd").compress(data, asbytes=True)


def texts(rng, documents, characters=300):
  """Documents of different lengths, with newlines that text files cannot keep."""
  letters = list("abc é日🙂\n\r\t\u2028")
  sizes = rng.integers(1, characters, documents)
  return ["".join(rng.choice(letters, size)) for size in sizes]


def write_parquet(file, rows, group=7):
  file.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)


def fails(spec, match, read=False):
  with pytest.raises(InputError, match=match) as error:
    corpus = open_corpus(str(spec))
    if read:
      records(corpus)
  assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, smallest=st.integers(1, 400), last=st.booleans(), gap=st.booleans())
def test_the_parts_of_a_file_hold_all_its_lines_for_any_cuts(
  tmp_path_factory, texts, smallest, last, gap
):
  file = tmp_path_factory.mktemp("lines") / "a.jsonl"
  content = lines({"text": text} for text in texts)
  content = content.replace("\n", "\n \n") if gap else content
  file.write_bytes((content if last else content[:-1]).encode("utf-8", "surrogatepass"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "SMALLEST", smallest)
    patch.setattr(base, "LARGEST", smallest)
    corpus = open_corpus(f"jsonl:{file}")
    found = records(corpus)
    assert smallest > 9 or len(corpus.parts) > 1, "a weak test: nothing was cut"
  assert [r.text for r in found] == texts, "a line was lost, repeated or cut at a part's end"
  assert len({r.name for r in found}) == len(texts)
  whole = records(open_corpus(f"jsonl:{file}"))
  assert [r.name for r in whole] == [r.name for r in found], "names must not depend on the cuts"


def test_plain_and_compressed_files_give_the_same_documents(tmp_path, rng):
  rows = [{"id": i, "body": text} for i, text in enumerate(texts(rng, 40))]
  data = lines(rows).encode()
  half = data.index(b"\n", len(data) // 2) + 1
  for name, content in (
    ("plain [1]/a.jsonl", data),
    ("gz/a.jsonl.gz", gzip.compress(data[:half]) + gzip.compress(data[half:])),
    ("zst/a.json.zst", zstd(data[:half]) + zstd(data[half:])),
  ):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, (tmp_path / name).parent, tmp_path / f"{name[:2]}*" / "*.js*"):
      found = records(open_corpus(f"jsonl:{place}?text=body&name=id"))
      assert [r.text for r in found] == [row["body"] for row in rows], name
      assert [r.name.split()[1] for r in found] == [str(i) for i in range(40)]


def test_files_are_assigned_to_splits_by_their_names(tmp_path, rng):
  files = {
    "c4-train.00000-of-00002.json.gz": "train",
    "c4-train.00001-of-00002.json.gz": "train",
    "c4-validation.00000-of-00001.json.gz": "validation",
    "test/contest.jsonl": "test",
    "Valid/trained.jsonl": "validation",
    "rest.jsonl": "train",
  }
  expected = collections.defaultdict(list)
  for name in sorted(files):
    own = texts(rng, 5)
    expected[files[name]] += own
    (tmp_path / name).parent.mkdir(exist_ok=True)
    data = lines({"text": text} for text in own).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  (tmp_path / ".cache").mkdir()
  (tmp_path / ".cache" / "train.jsonl").write_text("of some program's own")
  (tmp_path / "round").symlink_to(".")
  corpus = open_corpus(f"jsonl:{tmp_path}")
  assert by_split(corpus) == expected and corpus.note == ""
  some = f"jsonl:{tmp_path}/c4-*.gz,{tmp_path}/test"
  assert sorted(by_split(open_corpus(some))) == ["test", "train", "validation"]
  fails(f"jsonl:{tmp_path}/c4-val*", "all files are named for validation or test")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_split_is_taken_from_train_by_a_hash(tmp_path, kind):
  rows = [{"text": f"document {i}"} for i in range(5000)]

  def write(folder, name, rows):
    (tmp_path / folder).mkdir(exist_ok=True)
    if kind == "parquet":
      return write_parquet(tmp_path / folder / f"{name}.parquet", rows, 1000)
    (tmp_path / folder / f"{name}.jsonl").write_text(lines(rows))

  write("one", "books", rows)
  corpus = open_corpus(f"{kind}:{tmp_path}/one")
  found = by_split(corpus)
  assert sum(map(len, found.values())) == 5000
  for split in ("validation", "test"):
    assert 130 < len(found[split]) < 270, f"{split} should be 4 %: five deviations are 70"
  assert "no validation and no test split in the corpus: 4% of train each" in corpus.note
  (tmp_path / "moved").mkdir()
  (tmp_path / "one").rename(tmp_path / "moved" / "two")
  again = open_corpus(f"{kind}:{tmp_path}/moved/two")
  assert by_split(again) == found and again.fingerprint == corpus.fingerprint

  write("three", "train", rows)
  write("three", "validation", rows[:100])
  found = by_split(open_corpus(f"{kind}:{tmp_path}/three"))
  assert len(found["validation"]) == 100, "what is published stays as it is"
  assert 130 < len(found["test"]) < 270 and len(found["train"]) + len(found["test"]) == 5000


@pytest.mark.parametrize(
  "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_of_any_type_is_read_with_any_cuts(tmp_path, rng, monkeypatch, kind):
  expected = [*texts(rng, 60), ""]
  expected[7] = ""
  values = [*expected[:-1], None]
  array = pa.array(values, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else None
  if array is None:
    as_bytes = pa.types.is_binary(kind)
    array = pa.array([v.encode() if as_bytes and v is not None else v for v in values], kind)
  for name, part in (("a", array[:25]), ("b", array[25:])):
    table = pa.table({"n": list(range(len(part))), "text": part, "sum": part})
    pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
  monkeypatch.setattr(base, "SMALLEST", 1000)
  corpus = open_corpus(f"parquet:{tmp_path}/*.parquet?summary=sum&name=n")
  found = records(corpus)
  assert len(corpus.parts) > 3 and corpus.summaries
  assert [r.text for r in found] == [r.summary for r in found] == expected
  assert len({r.name for r in found}) == 61
  assert found[26].name == "b.parquet:1 1"


def test_missing_fields_and_files_are_refused(tmp_path):
  (tmp_path / "a.jsonl").write_text(lines([{"body": "x", "n": 3, "list": ["x"]}]))
  write_parquet(tmp_path / "a.parquet", [{"body": "x", "n": 3, "list": ["x"]}])
  for kind in ("jsonl", "parquet"):
    spec = f"{kind}:{tmp_path}/a.{kind}"
    fails(spec, r"has no field 'text'; name one of body, n, list with \?text=FIELD")
    fails(f"{spec}?text=body&summary=s", r"no field 's'; .* with \?summary=FIELD")
    fails(f"{spec}?text=n", "a.*:0: field 'n' holds int, not text; name another field")
    fails(f"{spec}?text=list", "field 'list' holds list, not text")
    fails(f"{spec}?txt=body", "option 'txt=body' is not one of text=..., summary=..., name=...")
    fails(f"{kind}:{tmp_path}/*.csv", "no file matches .*csv'; give files, folders of")
    fails(f"{kind}:", f"names no file; write {kind}:FILES")
  fails("jsonll:a", "no kind 'jsonll', did you mean 'jsonl'")
  fails("bucket:a", "no kind 'bucket'; choose text:")
  fails("mix:a=1,b=2", "a mixture is of prepared stores")


def test_small_files_are_read_as_one_part(tmp_path, monkeypatch):
  """Files of a split are joined in the order of their names, up to a size."""
  for kind in ("jsonl", "parquet"):
    for i in range(120):
      file = tmp_path / kind / f"{i:03}_{('train', 'test', 'valid')[i % 3]}.{kind}"
      if kind == "parquet":
        write_parquet(file, [{"text": f"{i} " * 50}])
      else:
        file.parent.mkdir(exist_ok=True)
        file.write_text(lines([{"text": f"{i} " * 50}]))
    few = open_corpus(f"{kind}:{tmp_path}/{kind}")
    assert len(few.parts) == 3, "one for each split"
    with monkeypatch.context() as patch:
      patch.setattr(base, "SMALLEST", 1000)
      more = open_corpus(f"{kind}:{tmp_path}/{kind}")
    assert 6 < len(more.parts) < 60 and max(part.size for part in more.parts) < 2000
    expected = {split: [f"{i} " * 50 for i in range(n, 120, 3)] for n, split in enumerate(
      ("train", "test", "validation"))}  # fmt: skip
    assert by_split(few) == by_split(more) == expected and few.fingerprint == more.fingerprint


def test_broken_files_are_named_with_the_place(tmp_path):
  good = '{"text": "a"}\n'
  for name, data, match in (
    ("a.jsonl", (good + "{oops\n").encode(), "a.jsonl:14: the line there is not JSON"),
    ("b.jsonl", (good + "[1]\n").encode(), "b.jsonl:14: .* holds list, not an object"),
    ("c.jsonl", (good + '{"txt": 1}\n').encode(), "c.jsonl:14: has no field 'text'; .*one of txt"),
    (
      "d.jsonl",
      good.encode() + b'{"text": "\xff"}\n',
      r"d.jsonl:14: .* not UTF-8 text \(byte 10\)",
    ),
    ("e.jsonl.gz", gzip.compress(good.encode() * 99, mtime=0)[:-9], "e.jsonl.gz: cannot be read"),
    ("f.jsonl.gz", b"no gzip at all", "f.jsonl.gz: cannot be read"),
    ("g.jsonl.zst", zstd(good.encode() * 9)[:-3], "g.jsonl.zst: cannot be read"),
    ("h.jsonl", b"\n \n", "its files are empty"),
    ("j.jsonl.gz", b"", "j.jsonl.gz: cannot be read .0 bytes"),
    ("k.jsonl", good.encode() + b"[" * 99_999, "k.jsonl:14: .* is not JSON .maximum recursion"),
    ("i.parquet", b"PAR1 and nothing more", "i.parquet: cannot be read as Parquet"),
  ):
    (tmp_path / name).write_bytes(data)
    fails(f"{name.split('.')[1]}:{tmp_path / name}", match, read=True)
  write_parquet(tmp_path / "p" / "a.parquet", [{"text": "a"}])
  write_parquet(tmp_path / "p" / "b.parquet", [{"txt": "a"}])
  fails(f"parquet:{tmp_path / 'p'}", "b.parquet: has no column 'text', as other files", read=True)
  write_parquet(tmp_path / "q" / "a.parquet", [{"text": b"\xffa"}])
  fails(f"parquet:{tmp_path / 'q'}", r"a.parquet:0: field 'text' is not UTF-8 text \(byte 0\)")
  said_to_be_text = pa.array([b"a"] * 20 + [b"na\xefve"]).cast(pa.string(), safe=False)
  pq.write_table(pa.table({"text": said_to_be_text}), tmp_path / "r.parquet")
  (tmp_path / "two\nlines\x1b.jsonl").write_text(good + "{oops")
  fails(f"jsonl:{tmp_path}/two*", r"two\\nlines\\x1b.jsonl:14: .* is not JSON", read=True)
  twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
  pq.write_table(twice, tmp_path / "s.parquet")
  fails(f"parquet:{tmp_path}/s.parquet", "s.parquet: has several columns 'text'; rename all but")
  fails(f"parquet:{tmp_path}/r.parquet", "row 20 is not UTF-8", read=True)


def test_half_a_surrogate_pair_does_not_stop_a_corpus(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
  assert [r.text for r in records(open_corpus(f"jsonl:{tmp_path}"))] == ["a?b"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_half_a_surrogate_pair_in_a_name_does_not_stop_a_corpus(tmp_path, quiet, kind):
  """In the field of the name, in the field of the summary, and in the bytes of a file's name."""
  (tmp_path / "in").mkdir()
  rows = [{"text": f"t{i}", "id": "emoji cut \ud83d", "sum": "\udfff"} for i in range(9)]
  for split in ("train", "validation", "test\udcff"):
    if kind == "jsonl":
      (tmp_path / "in" / f"{split}.jsonl").write_text("".join(map(escaped, rows)))
    else:
      broken = pa.array([row["id"].encode("utf-8", "surrogatepass") for row in rows])
      table = pa.table({"text": [row["text"] for row in rows], "id": broken, "sum": [""] * 9})
      with open(tmp_path / "in" / f"{split}.parquet", "wb") as file:
        pq.write_table(table, file)
  spec = f"{kind}:{tmp_path}/in?name=id&summary=sum"
  store = prepare(spec, tmp_path / "out", "bytes", console=quiet)
  names = [name for split in store.splits for name in store.split(split).names]
  assert len(set(names)) == 27 and all(name.encode() for name in names), "each can be written"
  assert all(" emoji cut " in name for name in names)


def escaped(row):
  """A line of JSON with every character beyond ASCII as an escape."""
  return json.dumps(row) + "\n"


def test_a_sample_is_training_text_from_the_whole_corpus(tmp_path, rng, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 2000)
  (tmp_path / "train.jsonl").write_text(lines({"text": f"<{i}>" * 50} for i in range(1000)))
  (tmp_path / "test.jsonl").write_text(lines({"text": "never"} for i in range(1000)))
  corpus = open_corpus(f"jsonl:{tmp_path}")
  sample = list(corpus.sample(20_000))
  assert sum(map(len, sample)) <= 20_000 and sum(map(len, sample)) > 10_000
  assert not any("never" in text for text in sample)
  numbers = sorted(int(text.split("<")[1].split(">")[0]) for text in sample if "<" in text[:-5])
  assert numbers[0] < 100 and numbers[-1] > 900, "a sample must reach over the whole corpus"
