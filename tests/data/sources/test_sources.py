import gzip
import shutil

import pytest

from infini_jax.config import InputError
from infini_jax.data.sources import Document, list_documents, open_corpus, read_text


def names(splits):
  return {split: [document.name for document in documents] for split, documents in splits.items()}


def write(folder, *files, text="some text\n"):
  for file in files:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text, "utf-8")


def test_folder_is_searched_for_text_and_nothing_else(tmp_path):
  write(tmp_path, "a.txt", "x/b.md", "x/y/c.tex", "d.py", "e.txt.gz")
  write(tmp_path, ".hidden.txt", ".git/f.txt", "g.bin", "h", "i.gz", "x/j.json")
  found = sorted(sum(names(list_documents(str(tmp_path))).values(), []))
  assert found == ["a.txt", "d.py", "e.txt.gz", "x/b.md", "x/y/c.tex"]


def test_split_is_a_partition_that_moves_with_the_corpus(tmp_path):
  write(tmp_path / "one", *(f"{i}.txt" for i in range(100)))
  splits = names(list_documents(str(tmp_path / "one")))
  assert {split: len(members) for split, members in splits.items()} == {
    "train": 92,
    "validation": 4,
    "test": 4,
  }
  assert len(set(sum(splits.values(), []))) == 100
  shutil.move(tmp_path / "one", tmp_path / "two")
  assert names(list_documents(str(tmp_path / "two"))) == splits


def test_folders_named_like_splits_are_the_splits(tmp_path):
  write(tmp_path, "train/a.txt", "train/b.txt", "validation/c.txt", "test/x/d.txt", "README.md")
  assert names(list_documents(str(tmp_path))) == {
    "train": ["train/a.txt", "train/b.txt"],
    "validation": ["validation/c.txt"],
    "test": ["test/x/d.txt"],
  }


@pytest.mark.parametrize(
  "held_out,missing", [("Test", "validation"), ("dev", "test"), ("val", "test")]
)
def test_a_split_without_a_folder_is_taken_from_train_alone(tmp_path, held_out, missing):
  write(tmp_path, *(f"train/{i}.txt" for i in range(50)), f"{held_out}/x.txt", "notes.md")
  splits = names(list_documents(str(tmp_path)))
  (given,) = {"validation", "test"} - {missing}
  assert splits[given] == [f"{held_out}/x.txt"]
  assert len(splits[missing]) == 2 and len(splits["train"]) == 48
  assert not set(splits[missing]) & set(splits["train"])
  corpus = open_corpus(str(tmp_path))
  assert corpus.note == f"no {missing} split in the corpus: 4% of train, chosen by a hash"
  assert corpus.left_out == "left out: 1 files (1 .md)"


def test_a_folder_that_is_named_for_a_split_but_has_no_train_beside_it_is_no_split(tmp_path):
  """As in a tree of source code: its tests are documents like the others."""
  write(tmp_path, *(f"{folder}/{i}.py" for folder in ("test", "source") for i in range(25)))
  splits = names(list_documents(str(tmp_path)))
  assert [len(splits[split]) for split in ("train", "validation", "test")] == [46, 2, 2]


def test_held_out_texts_alone_are_evaluated_and_never_trained_on(tmp_path):
  write(tmp_path, *(f"test/{i}.txt" for i in range(9)))
  with pytest.raises(
    InputError, match="all documents are in test/, which are held out; add train/"
  ):
    open_corpus(str(tmp_path))
  corpus = open_corpus(str(tmp_path), train=False)
  assert {split for part in corpus.parts for split in part.splits} == {"test"}


def test_python_stdlib_is_text_without_installed_packages():
  splits = names(list_documents("python-stdlib"))
  everything = sum(splits.values(), [])
  assert "argparse.py" in everything and "json/decoder.py" in everything
  assert not [name for name in everything if "site-packages" in name or "__pycache__" in name]
  assert all(splits.values())


def test_text_has_plain_newlines_and_no_mark(tmp_path):
  data = "\ufeffnaïve\r\none\rtwo\n".encode()
  (tmp_path / "a.txt").write_bytes(data)
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress(data))
  for name in ("a.txt", "b.txt.gz"):
    assert read_text(Document(name, tmp_path / name)) == "naïve\none\ntwo\n"


@pytest.mark.parametrize(
  ("name", "data", "match"),
  [
    ("a.txt", "naïve".encode("latin1"), "a.txt: not UTF-8.*iconv"),
    ("a.txt", b"a\0b", "a.txt: holds NUL.*remove it"),
    ("a.txt.gz", b"no gzip", "a.txt.gz: cannot be read"),
    ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "a.txt.gz: cannot be read"),
  ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, name, data, match):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=match) as error:
    read_text(Document(name, tmp_path / name))
  assert "\n" not in str(error.value)


def test_links_are_followed_but_not_in_circles(tmp_path):
  write(tmp_path, "c/train/a.txt", "c/test/b.txt", "else/c.txt", ".else/d.txt")
  for name, target in (("validation", "../else"), ("train/up", ".."), ("test/d", "../../.else")):
    (tmp_path / "c" / name).symlink_to(target)
  assert names(list_documents(str(tmp_path / "c"))) == {
    "train": ["train/a.txt"],
    "validation": ["validation/c.txt"],
    "test": ["test/b.txt", "test/d/d.txt"],
  }


def test_names_are_text_whatever_their_bytes(tmp_path):
  write(tmp_path, "\udcff.txt", "é <i>.txt", "a.txt")
  found = sum(names(list_documents(str(tmp_path))).values(), [])
  assert sorted(found) == [r"\xff.txt", "a.txt", "é <i>.txt"]


def test_wrong_corpora_are_refused(tmp_path):
  write(tmp_path, "empty/a.bin", "few/a.txt", "few/b.txt")
  write(tmp_path, "splits/train/a.txt", "splits/test/b.txt", "splits/validation/c.bin")
  write(tmp_path, "one/train/a.txt", "one/test/b.txt")
  for path, match in (
    (tmp_path / "none", "no such folder"),
    ("", "no such folder"),
    (tmp_path / "few/a.txt", "is a file: give the folder"),
    (tmp_path / "empty", "no .txt .md .tex .py file"),
    (tmp_path / "few", r"2 document.*at least 3 files, or make the folders train/"),
    (tmp_path / "splits", "folder validation/ has no documents"),
    (tmp_path / "one", r"no folder for validation, and 1 document.*add validation/"),
  ):
    with pytest.raises(InputError, match=match):
      list_documents(str(path))
  for i, target in enumerate(("nowhere.txt", "1.txt", "/dev/null")):
    write(tmp_path / "links", "a.txt", "b.txt", "c.txt")
    (link := tmp_path / f"links/{i}.txt").symlink_to(target)
    with pytest.raises(InputError, match=f"{i}.txt: cannot be read .a link to nothing"):
      open_corpus(str(tmp_path / "links"))
    link.unlink()
  (tmp_path / "links/d.txt.gz").touch()
  with pytest.raises(InputError, match=r"d.txt.gz: cannot be read \(0 bytes"):
    open_corpus(str(tmp_path / "links"))
  with pytest.raises(InputError, match=r"option 'a=b' is not one of bad=\.\.\."):
    open_corpus(f"text:{tmp_path}/few?a=b")
