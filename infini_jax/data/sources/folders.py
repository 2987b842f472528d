"""Folders of text files, one document for each file, and the splits of the documents."""

import dataclasses
import gzip
import hashlib
import os
import sysconfig
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import (
  CALLED,
  HELD_OUT,
  Corpus,
  CorpusPart,
  Options,
  Record,
  digest,
  middle,
  part_size,
  split_rule,
  tried,
)
from infini_jax.data.sources.files import (
  Listing,
  file_size,
  files_below,
  left_out,
  name_below,
  packing,
  size_or_one,
)
from infini_jax.data.sources.specs import plain
from infini_jax.data.sources.walk import Way, once, one_split, unreadable
from infini_jax.paths import expand

PYTHON_STDLIB = "python-stdlib"
SUFFIXES = (".txt", ".md", ".tex", ".py")  # in upper or lower case; .gz may follow


class Document(NamedTuple):
  """One file of a corpus. `name` is its path inside the corpus, the same on every machine."""

  name: str
  path: Path


@dataclasses.dataclass(frozen=True)
class FolderPart(CorpusPart):
  """Documents of one split."""

  documents: list[Document]

  def each(self) -> Iterator[Record | InputError]:
    """The documents, one at a time."""
    return (tried(self._record, document) for document in self.documents)

  def _record(self, document: Document) -> Record:
    return Record(self.splits[0], document.name, read_text(document))


@dataclasses.dataclass(frozen=True)
class Folder(Corpus):
  """A folder; the list of all its documents is known when it is opened."""

  train: list[Document] = dataclasses.field(default_factory=list)

  def sample(self, characters: int) -> Iterator[str]:
    """About this many characters, from the middles of documents spread evenly over the list."""
    chosen = self.train[:: max(1, len(self.train) // 2048)]
    share = max(1, characters // max(1, len(chosen)))
    for document in chosen:
      yield middle(_text(document, self.skips), share)


def open_text(spec: str, train: bool = True) -> Folder:
  """The corpus `text:DIR`.

  Raises:
    InputError: as `list_documents`.
  """
  path, options = Options.split(spec, ())
  return open_folder(spec, plain(path), train, options.skips)


def open_folder(spec: str, path: str, train: bool = True, skips: bool = False) -> Folder:
  """The corpus in a folder, or `python-stdlib`; for an evaluation also a single file.

  The fingerprint covers the names and sizes of all documents, and the content of a few. Reading all
  of a large corpus again would take as long as tokenizing it.

  Raises:
    InputError: as `list_documents`.
  """
  splits, note, others = _find(path, train)
  size = size_or_one if skips else file_size
  sizes = {d.path: size(d.path) for documents in splits.values() for d in documents}
  listing: list[str] = []
  for split in SPLITS:
    listing += [f"{split}\0{d.name}\0{sizes[d.path]}" for d in splits[split]]
    some = splits[split][:: max(1, len(splits[split]) // 16)]
    listing += [digest([_text(document, skips)]) for document in some]
  parts: list[CorpusPart] = []
  target = part_size(sum(sizes.values()))
  for split in SPLITS:
    documents, filled = [], 0
    for document in splits[split]:
      documents.append(document)
      filled += sizes[document.path]
      if filled >= target:
        parts.append(FolderPart((split,), filled, documents))
        documents, filled = [], 0
    if documents:
      parts.append(FolderPart((split,), filled, documents))
  fingerprint = digest(listing)
  train_documents = splits["train"]
  return Folder(
    spec, parts, fingerprint, note=note, left_out=others, skips=skips, train=train_documents
  )


def list_documents(path: str) -> dict[str, list[Document]]:
  """Finds the documents of a corpus and their splits; the same corpus always gives the same.

  Args:
    path: a folder, or the word `python-stdlib`. The folder is searched recursively for .txt .md
      .tex .py files, each plain or .gz. Hidden files are skipped, links are followed, and each file
      is taken once. Sub-folders that are named train, validation (valid, val, dev) and test, in
      upper or lower case, are the splits, if there is one for train and one that is held out, or if
      all documents are in them. A hash of each document's name decides where no folder does.

  Returns:
    The documents of "train", "validation" and "test", each in the order of their names.

  Raises:
    InputError: there is no such folder, it has no documents, too few to split or none for train, or
      a folder in it cannot be read.
  """
  return _find(path)[0]


def read_text(document: Document) -> str:
  r"""The text of a document: UTF-8, without a byte order mark, every newline as "\n".

  Raises:
    InputError: the file cannot be read, or is not text.
  """
  try:
    data = document.path.read_bytes()
    if packing(document.path) == ".gz":
      data = gzip.decompress(data)
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{document.path}: not UTF-8 text (byte {error.start}); convert it "
      f"(iconv -f latin1 -t utf-8) or remove it from the corpus"
    ) from None
  except (OSError, EOFError, zlib.error) as error:
    raise unreadable(document.path, error) from None
  if "\0" in text:
    raise InputError(
      f"{document.path}: holds NUL characters, so it is not a text file; remove it from the corpus"
    )
  return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(document: Document, skips: bool) -> str:
  """The text of a document; "" if it cannot be read and such documents are left out."""
  try:
    return read_text(document)
  except InputError:
    if skips:
      return ""
    raise


def _find(path: str, train: bool = True) -> tuple[dict[str, list[Document]], str, str]:
  """The documents of each split, a note on missing splits, and a line about what is left out."""
  if path == PYTHON_STDLIB:
    return _split(_python_stdlib(), path, train), "", ""
  root = Path(expand(path))
  if not path or not root.exists():
    raise InputError(
      f"corpus {path!r}: no such folder; give a folder of {' '.join(SUFFIXES)} files, "
      f"a prepared store, or the word {PYTHON_STDLIB}"
    )
  if not root.is_dir():
    return _single(root, train), "", ""
  start = Way(0, root, os.path.realpath(root))
  named = {name: CALLED[name.lower()] for name in _folders(start) if name.lower() in CALLED}
  held_out = "train" in named.values() and len(set(named.values())) > 1
  taken, rest = _below([start.enter(name) for name in named] if held_out else [start], SUFFIXES)
  if not taken:
    there = left_out(rest).partition(": ")[2]
    raise InputError(
      f"corpus {path!r}: no {' '.join(SUFFIXES)} file (plain or .gz) in this folder"
      f"{there and f', but {there}'}; rename the texts or give another folder"
    )
  split_of = lambda way: named.get(way.path.relative_to(root).parts[0], "")
  if not all(map(split_of, taken)):
    return _split(_documents(root, once(taken)), path, train), "", left_out(rest)
  ways = one_split(taken, split_of)
  splits = {split: _documents(root, (w for w in ways if split_of(w) == split)) for split in SPLITS}
  known = {way.real for way in taken}  # a split may link to files next to it
  outside = [way for ways in _below([start], SUFFIXES) for way in ways if way.real not in known]
  note = split_rule(set(named.values()))[1]
  return _given_splits(splits, named, path, train), note, left_out([*rest, *outside])


def _folders(root: Way) -> list[str]:
  """The names of the folders in a folder."""
  return [way.path.name for way in root.entries() if way.path.is_dir()]


def _given_splits(
  splits: dict[str, list[Document]], named: dict[str, str], path: str, train: bool
) -> dict[str, list[Document]]:
  """The splits of sub-folders; those that no folder is named for are taken from train.

  Raises:
    InputError: training needs a split that has no documents, or too few in train to be taken from.
  """
  missing = [split for split in SPLITS if split not in named.values()]
  if train and "train" in missing:
    raise InputError(
      f"corpus {path!r}: all documents are in {', '.join(f'{name}/' for name in sorted(named))}, "
      f"which are held out; add train/, or rename what is for training"
    )
  for name, split in sorted(named.items()):
    if train and not splits[split]:
      raise InputError(
        f"corpus {path!r}: its folder {name}/ has no documents that are in no other split; add "
        f"some to it"
      )
  documents = splits["train"]  # at least one is left for train
  if len(documents) > len(missing) * _share(documents):
    return splits | _hold_out(documents, missing)
  if train:
    raise InputError(
      f"corpus {path!r}: no folder for {' or '.join(missing)}, and {len(documents)} document(s) "
      f"for train, too few to hold one out; add {' and '.join(f'{split}/' for split in missing)}"
    )
  return splits


def _below(starts: list[Way], suffixes: tuple[str, ...], skip: Collection[str] = ()) -> Listing:
  endings = tuple(suffix + packed for suffix in suffixes for packed in ("", ".gz"))
  return files_below(starts, endings, skip)


def _documents(root: Path, ways: Iterable[Way]) -> list[Document]:
  """Files as Documents, in the order of their names."""
  return sorted(Document(name_below(root, way.path), way.path) for way in ways)


def _python_stdlib() -> list[Document]:
  """The Python files of the standard library, without the few that are not text."""
  root = Path(sysconfig.get_path("stdlib"))
  start = Way(0, root, os.path.realpath(root))
  found, _ = _below([start], (".py",), skip=("site-packages", "dist-packages", "__pycache__"))
  return [document for document in _documents(root, once(found)) if _is_text(document)]


def _is_text(document: Document) -> bool:
  try:
    read_text(document)
  except InputError:
    return False
  return True


def _single(file: Path, train: bool) -> dict[str, list[Document]]:
  """A single file of text, with any suffix.

  Raises:
    InputError: it is for training, or its suffix is that of another kind of corpus.
  """
  if train:
    raise InputError(f"corpus '{file}' is a file: give the folder that holds it")
  name = file.name.lower().removesuffix(".gz").removesuffix(".zst")
  for kind, suffixes in (("jsonl", (".jsonl", ".json")), ("parquet", (".parquet",))):
    if name.endswith(suffixes):
      raise InputError(f"corpus '{file}' is not text by itself; write {kind}:{file}")
  return {split: [Document(file.name, file)] * (split == "test") for split in SPLITS}


def _split(documents: list[Document], path: str, train: bool) -> dict[str, list[Document]]:
  """Splits by a hash of the names, so that a document keeps its split when the corpus is moved.

  One or two documents that are not for training are all in test.
  """
  if len(documents) < 3 and not train:
    return {split: documents * (split == "test") for split in SPLITS}
  if len(documents) < 3:
    raise InputError(
      f"corpus {path!r} has {len(documents)} document(s), too few to hold one out for validation "
      f"and one for test: split the text in at least 3 files, or make the folders "
      f"train/ validation/ test/"
    )
  return _hold_out(documents, ["validation", "test"])


def _hold_out(documents: list[Document], splits: list[str]) -> dict[str, list[Document]]:
  """Documents for each of these splits, by a hash of their names; the others are for train."""
  share = _share(documents)
  by_hash = sorted(documents, key=lambda d: hashlib.blake2b(os.fsencode(d.name)).digest())
  held_out = {split: sorted(by_hash[i * share : (i + 1) * share]) for i, split in enumerate(splits)}
  return {"train": sorted(by_hash[len(splits) * share :]), **held_out}


def _share(documents: list[Document]) -> int:
  """How many documents a split that is held out gets."""
  return max(1, round(HELD_OUT * len(documents)))
