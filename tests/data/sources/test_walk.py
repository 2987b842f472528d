"""A corpus reads each file once, for all links, patterns and endings of names."""

import gzip
import itertools
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infini_jax.data.sources import open_corpus, specs
from tests.data.sources.test_files import fails, lines, records

DOCUMENTS = [{"text": f"document {i}", "id": f"d{i}"} for i in range(60)]
TEXTS = sorted(row["text"] for row in DOCUMENTS)


def write(file, rows=DOCUMENTS):
  """Writes JSON lines, Parquet or text, by the name of the file."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if file.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), file)
  elif file.suffix == ".jsonl":
    file.write_text(lines(rows))
  else:
    for row in rows:
      file.with_name(f"{row['id']}{file.suffix}").write_text(row["text"])


def found(spec):
  return sorted(record.text for record in records(open_corpus(spec)))


def tangle(folder, end):
  """Three folders, each with links to all of them, to the folder above, and to each file."""
  for name, start in zip("abc", (0, 20, 40), strict=True):
    write(folder / name / f"{name}.{end}", DOCUMENTS[start : start + 20])
  for one, other in itertools.product("abc", "abc"):
    (folder / one / f"to_{other}").symlink_to(f"../{other}")
    if end != "txt":
      (folder / one / f"{other}_too.{end}").symlink_to(f"../{other}/{other}.{end}")
  for name in "abc":
    (folder / name / "up").symlink_to("..")
    (folder / name / "up_too").symlink_to(folder)
  (folder / "here").symlink_to(".")
  file = sorted((folder / "a").glob(f"*.{end}"))[0]
  os.link(file, folder / "b" / f"hard.{end}")
  (folder / f"0_first.{end}").symlink_to(file)


@pytest.mark.parametrize(
  "place",
  [
    "",
    "/**",
    "/**/*.{end}",
    "/*/*.{end}",
    "/*/*/*.{end}",
    "/a/../c/up/b,{root}",
    "/**/up/**/*.{end}",
  ],
)
@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_every_file_is_read_once_however_many_links_lead_to_it(tmp_path, place, end):
  tangle(tmp_path, end)
  corpus = open_corpus(f"{end}:{tmp_path}{place.format(end=end, root=tmp_path)}")
  assert sorted(record.text for record in records(corpus)) == TEXTS
  names = {record.name.split(":")[0] for record in records(corpus)}
  if place != "/*/*/*.{end}":  # this pattern finds them only through links
    assert names == {f"{n}/{n}.{end}" for n in "abc"}, "a link must not give a file its name"


def test_a_folder_of_text_is_read_once_however_many_links_lead_to_it(tmp_path):
  tangle(tmp_path, "txt")
  assert found(str(tmp_path)) == found(f"text:{tmp_path}") == TEXTS


def test_a_file_named_twice_is_read_once(tmp_path):
  write(tmp_path / "x" / "a.jsonl")
  (tmp_path / "y").symlink_to("x")
  every = [
    f"{tmp_path}/{p}" for p in ("x/a.jsonl", "x", "x/*", "**/*.jsonl", "y/../x/a.jsonl", "y")
  ]
  assert found(f"jsonl:{','.join(every + every)}") == TEXTS


def test_a_file_that_only_a_link_leads_to_is_read_by_the_name_of_the_link(tmp_path):
  write(tmp_path / "blobs" / "a.jsonl")
  (tmp_path / "blobs" / "a.jsonl").rename(tmp_path / "blobs" / "9f86d0")
  (tmp_path / "data").mkdir()
  for folder in ("data", "blobs"):  # also if the folder holds the file under another name
    (tmp_path / folder / "train.jsonl").symlink_to(tmp_path / "blobs" / "9f86d0")
    names = [record.name for record in records(open_corpus(f"jsonl:{tmp_path}/{folder}"))]
    assert len(names) == 60 and names[0] == "train.jsonl:0"


def test_broken_links_are_reported_in_one_line(tmp_path):
  write(tmp_path / "a.jsonl")
  for name, target in (("b.jsonl", "nowhere"), ("c.jsonl", "c.jsonl"), ("d.jsonl", "/dev/null")):
    (tmp_path / name).symlink_to(target)
    for place in ("", "/*.jsonl", f"/{name}", "/**/*.jsonl"):
      fails(f"jsonl:{tmp_path}{place}", rf"{name}: cannot be read \(a link to nothing, or")
    (tmp_path / name).unlink()
  (tmp_path / "docs").symlink_to("nowhere")
  corpus = open_corpus(f"jsonl:{tmp_path}")
  assert corpus.left_out.startswith("left out: 1 links to nothing (/"), "it may have been a folder"


def test_endings_are_read_in_upper_and_lower_case(tmp_path):
  pack = lambda row: gzip.compress(row["text"].encode())
  for row, end in zip(DOCUMENTS, itertools.cycle(["TXT", "Md", "pY", "txt.GZ", "Tex.gZ"])):
    file = tmp_path / "texts" / f"{row['id']}.{end}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pack(row) if end.lower().endswith("gz") else row["text"].encode())
  assert found(f"{tmp_path}/texts") == TEXTS
  data = [lines(DOCUMENTS[i : i + 20]).encode() for i in (0, 20, 40)]
  (tmp_path / "lines").mkdir()
  (tmp_path / "lines" / "a.JSONL").write_bytes(data[0])
  (tmp_path / "lines" / "b.Jsonl.GZ").write_bytes(gzip.compress(data[1]))
  (tmp_path / "lines" / "c.json.Zst").write_bytes(pa.Codec("zstd").compress(data[2], asbytes=True))
  assert found(f"jsonl:{tmp_path}/lines") == found(f"jsonl:{tmp_path}/lines/*.*") == TEXTS
  write(tmp_path / "rows" / "a.parquet")
  (tmp_path / "rows" / "a.parquet").rename(tmp_path / "rows" / "a.Parquet")
  assert found(f"parquet:{tmp_path}/rows") == TEXTS


def test_files_that_are_left_out_are_reported(tmp_path):
  write(tmp_path / "x" / "a.txt")
  names = [
    "a.pdf",
    "b.PDF",
    "c.pdf",
    "d.tar.gz",
    "noend",
    ".hidden",
    "e.1",
    "f.2",
    "g.3",
    "a.jsonl",
  ]
  for name in names:
    (tmp_path / "x" / name).write_text(lines(DOCUMENTS[:1]))
  (tmp_path / ".git").mkdir()
  (tmp_path / ".git" / "x.txt").write_text("hidden")
  assert open_corpus(str(tmp_path)).left_out == (
    "left out: 9 files (2 .pdf, 1 .jsonl, 1 .PDF, 1 .tar.gz, 1 .1, 3 others), "
    "2 hidden files or folders"
  )
  told = open_corpus(f"jsonl:{tmp_path}").left_out
  assert told.startswith("left out: 68 files (60 .txt, 2 .pdf, ")
  assert open_corpus(f"jsonl:{tmp_path}/x/*.jsonl").left_out == ""
  (tmp_path / "x" / "b.JSONL").write_text(lines(DOCUMENTS[:1]))
  assert open_corpus(f"jsonl:{tmp_path}/x/*.jsonl").left_out == "left out: 1 files (1 .JSONL)"
  assert open_corpus(f"jsonl:{tmp_path}/x/a.jsonl").left_out == ""
  fails(f"jsonl:{tmp_path}/x/*.pDF", r"no file matches .* \(there: 3 files \(2 .pdf, 1 .PDF\)\)")
  fails(f"parquet:{tmp_path}", r"no file matches .* \(there: 70 files \(60 .txt, ")


def test_texts_beside_the_folders_of_splits_are_reported(tmp_path):
  for split in ("train", "validation", "test"):
    write(tmp_path / split / "a.txt", DOCUMENTS[:3])
  assert open_corpus(str(tmp_path)).left_out == ""
  (tmp_path / "more.md").write_text("never read")
  assert open_corpus(str(tmp_path)).left_out == "left out: 1 files (1 .md)"


def test_folders_of_splits_may_link_to_files_beside_them(tmp_path):
  write(tmp_path / "pool" / "a.txt", DOCUMENTS[:4])
  for i, split in enumerate(("train", "validation", "test")):
    (tmp_path / split).mkdir()
    (tmp_path / split / "x.txt").symlink_to(f"../pool/d{i}.txt")
  corpus = open_corpus(str(tmp_path))
  assert sorted((r.split, r.name, r.text) for r in records(corpus)) == [
    ("test", "test/x.txt", "document 2"),
    ("train", "train/x.txt", "document 0"),
    ("validation", "validation/x.txt", "document 1"),
  ]
  assert corpus.left_out == "left out: 1 files (1 .txt)"
  (tmp_path / "validation" / "x.txt").unlink()
  (tmp_path / "validation" / "y.txt").symlink_to("../train/x.txt")
  fails(str(tmp_path), "train/ has no documents that are in no other split")


LINKS = {
  "a file": lambda root, end: (root / "test" / f"x.{end}").symlink_to(f"../all/b.{end}"),
  "a hard link": lambda root, end: os.link(root / "all" / f"b.{end}", root / "test" / f"b.{end}"),
  "a folder": lambda root, end: (root / "test" / "b").symlink_to("../all/deep"),
  "a way round": lambda root, end: (
    (root / "test" / "b").symlink_to("../more/deeper"),
    (root / "more").mkdir(),
    (root / "more" / "deeper").symlink_to("../all/deep"),
  ),
  "a folder of another split": lambda root, end: (
    (root / "train").mkdir(),
    (root / "train" / "c").symlink_to("../all"),
    (root / "test" / "b").symlink_to("../train/c/deep"),
  ),
}  # fmt: skip


@pytest.mark.parametrize("place", ["", "/**/*.{end}", "/all,{root}/test", "/test,{root}/all"])
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_files_that_any_link_holds_out_are_held_out(tmp_path, end, link, place):
  """A file in two splits must not be trained on, because it is also evaluated."""
  write(tmp_path / "all" / f"a.{end}", DOCUMENTS[:40])
  deep = "deep" * ("folder" in link or "round" in link)
  write(tmp_path / "all" / deep / f"b.{end}", DOCUMENTS[40:])
  write(tmp_path / "test" / f"c.{end}", DOCUMENTS[:1])
  (tmp_path / "test" / "up").symlink_to("..")  # this link holds nothing out
  LINKS[link](tmp_path, end)
  corpus = open_corpus(f"{end}:{tmp_path}{place.format(end=end, root=tmp_path)}")
  held_out = sorted(r.text for r in records(corpus) if r.split == "test")
  assert held_out == sorted(["document 0", *TEXTS_OF_B])
  assert len(list(records(corpus))) == 61


TEXTS_OF_B = [row["text"] for row in DOCUMENTS[40:]]


ODD = [
  "a,b",
  "q?x",
  "x=1&y=2",
  "50% [of] it's",
  "star*",
  "c:d",
  " spaces ",
  "back\\slash,",
  "#{}~$!",
]


@pytest.mark.parametrize("name", ODD)
def test_every_name_can_be_written(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  written = "".join(f"\\{c}" if c in ",?&=:*[]\\ " else c for c in name)
  write(tmp_path / name / "a.txt")
  write(tmp_path / f"{name}.d" / f"{name}.jsonl")
  write(tmp_path / f"{name}.d" / f"{name}.parquet")
  assert found(f"text:{written}") == found(written) == found(name) == TEXTS
  for end in ("jsonl", "parquet"):
    assert found(f"{end}:{written}.d") == found(f"{end}:{written}.d/{written}.{end}") == TEXTS
    assert found(f"{end}:{written}.d/*.{end}?text=text") == TEXTS
  assert specs.plain(written) == name and specs.cut(written, ",") == [written]


def test_for_names_with_separators_the_error_says_how_to_write_them(tmp_path):
  for name in ("a,b.jsonl", "q?x.jsonl"):
    write(tmp_path / name)
    fails(
      f"jsonl:{tmp_path}/{name}", r"in a name, put a backslash before , \? & = .* such as a\\,b"
    )
  assert found(f"jsonl:{tmp_path}/*.jsonl") == sorted(TEXTS * 2)
  fails(f"text:{tmp_path}/what?is", "option 'is' is not one .* put a backslash before")
  (tmp_path / "field.jsonl").write_text(json.dumps({"a&b=c": "text", "text": "no"}) + "\n")
  assert found(f"jsonl:{tmp_path}/field.jsonl?text=a\\&b=c") == ["text"]
