"""One shard of a token store: its documents' ids in an array_record file, and their index.

The only file that imports array_record.
"""

import array
import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from array_record.python import array_record_module

from infini_jax import files
from infini_jax.config import InputError

BLOCK = 16_384  # tokens of a record; a slice of a book reads only the records that it needs
HASH = "sha256"  # the array of an index that holds the hash of the others
# Errors of a damaged index. A flag of an entry that was changed asks for a password or for another
# method of compression: zipfile then raises a RuntimeError.
ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError)
TOTALS = ("documents", "tokens", "bytes", "words", "characters", "empty", "short", "bad")
FIRST = ("empty", "bad")  # the kinds of documents left out of which the first one is kept


class Entry(NamedTuple):
  """One document to store."""

  name: str
  ids: np.ndarray  # (n,) token ids
  bytes: int  # bytes of its text in UTF-8
  words: int  # words of its text, split at white space
  characters: int  # characters of its text


def summaries_of(split: Path) -> Path:
  """The folder of the summaries of a split's documents, in the same order."""
  return split.with_name(f"{split.name}.summaries")


class Shard(NamedTuple):
  """The files of one shard; every method raises InputError if a file is missing or damaged."""

  folder: Path  # the folder of the split
  number: int

  @property
  def record_file(self) -> Path:
    """The file of blocks of ids."""
    return self.folder / f"{self.number:05d}.array_record"

  @property
  def index_file(self) -> Path:
    """The file with the names and sizes of the documents."""
    return self.folder / f"{self.number:05d}.npz"

  def is_finished(self) -> bool:
    """Whether the shard is complete. A shard without documents has only its index."""
    if not self.index_file.exists():
      return False
    return self.record_file.exists() or not self.totals()[0]

  def counts(self) -> np.ndarray:
    """Tokens, bytes and words of each document: int64, shape (3, documents)."""
    return self._counts(self._arrays())

  def names(self) -> list[str]:
    """The name of each document: its place in the corpus."""
    arrays = self._arrays()
    names = _text(arrays.get("names"))
    return names.split("\0") if self._counts(arrays).shape[1] else []

  def totals(self) -> np.ndarray:
    """The `TOTALS` of its documents and of those left out: int64, shape (8,)."""
    arrays = self._arrays()
    totals = arrays.get("totals")
    if totals is None:  # an older version did not write them
      tokens, size, words = (counts := self._counts(arrays)).sum(axis=1)
      totals = np.array([counts.shape[1], tokens, size, words, size], np.int64)
    return np.pad(totals, (0, len(TOTALS) - len(totals)))

  def first(self, kind: str) -> str:
    """About the first document that was left out; "" if none was.

    Args:
      kind: of `FIRST`: `empty`, the name of the document; or `bad`, the reason with the place.
    """
    return _text(self._arrays().get(f"first_{kind}"))

  def open(self, blocks: int) -> Any:
    """A reader of the records; the shard must have exactly `blocks` of them."""
    try:
      # No reading ahead: it helps a scan, but lanes jump between documents.
      options = "readahead_buffer_size:0"
      reader = array_record_module.ArrayRecordReader(str(self.record_file), options)
      found = reader.num_records()  # 0 if the file is missing: the reader reports no error
    except RuntimeError as error:
      raise damaged(self.record_file, error) from None
    if found != blocks:
      raise damaged(self.record_file, f"{found} records instead of {blocks}")
    return reader

  def check(self) -> None:
    """Reads all its records: each has a checksum of its own."""
    counts = self.counts()
    if blocks := int((-(-counts[0] // BLOCK)).sum()):
      self.open(blocks)
      for _ in read_records(self.record_file, 0, blocks):
        pass

  def _counts(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
    if "counts" not in arrays:
      raise damaged(self.index_file, "no counts")
    return arrays["counts"]

  def _arrays(self) -> dict[str, np.ndarray]:
    """The arrays of the index; an older version did not write all of them."""
    try:
      with np.load(self.index_file, allow_pickle=False) as file:
        arrays = dict(file)
      hashed = arrays.pop(HASH, None)
      if hashed is not None and hashed.tobytes() != _hash(arrays):
        raise ValueError("other bytes than were written")
      return arrays
    except (OSError, EOFError, ValueError, KeyError, *ZIP) as error:
      raise damaged(self.index_file, error) from None


def shards_of(folder: Path, count: int, first: int = 0) -> list[Shard]:
  """`count` shards of a split, from the number `first` on."""
  return [Shard(folder, number) for number in range(first, first + count)]


class ShardWriter:
  """Writes one shard: its records, then its index. The shard is finished if its index exists.

  Without documents there are no records, and the index counts what was left out. In a `with`
  statement whose body fails, a shard that is not closed leaves no file.

  Args:
    shard: the shard to write.
    dtype: the type of the ids on disk, such as `<u2`.
  """

  def __init__(self, shard: Shard, dtype: str):
    self._shard, self._dtype = shard, dtype
    self._unfinished = contextlib.ExitStack()  # the temporary file of the records
    self._writer: Any = None
    self._names = bytearray()
    self._counts = array.array("q")  # three for each document
    self._characters = 0
    self._left_out = {"empty": 0, "short": 0, "bad": 0}
    self._first: dict[str, str] = {}

  def add(self, entry: Entry) -> None:
    """Writes a document."""
    if self._writer is None:
      options = "group_size:1,zstd:3"
      temporary = self._unfinished.enter_context(files.atomic(self._shard.record_file))
      self._writer = array_record_module.ArrayRecordWriter(str(temporary), options)
    ids = entry.ids.astype(self._dtype)
    for start in range(0, len(ids), BLOCK):
      self._writer.write(ids[start : start + BLOCK].tobytes())
    self._names += b"\0" * bool(self._counts) + entry.name.encode("utf-8", "surrogateescape")
    self._counts.extend((len(ids), entry.bytes, entry.words))
    self._characters += entry.characters

  def leave_out(self, kind: str, about: str) -> None:
    """Counts a document that is not written.

    Args:
      kind: why: `empty`, `short`, or `bad`, which cannot be read.
      about: its name, or the reason with the place.
    """
    self._left_out[kind] += 1
    self._first.setdefault(kind, about)

  def close(self) -> None:
    """Finishes the shard."""
    if self._writer is not None:
      self._writer.close()
      with unless_finished(self._shard.record_file):
        self._unfinished.close()
    counts = np.array(self._counts, np.int64).reshape(-1, 3).T
    totals = [counts.shape[1], *counts.sum(axis=1), self._characters, *self._left_out.values()]
    index = self._shard.index_file
    arrays: dict[str, Any] = {
      "names": np.frombuffer(bytes(self._names), np.uint8),
      "counts": counts,
      "totals": np.array(totals, np.int64),
    }
    for kind in FIRST:
      about = self._first.get(kind, "").encode("utf-8", "surrogateescape")
      arrays[f"first_{kind}"] = np.frombuffer(about, np.uint8)
    arrays[HASH] = np.frombuffer(_hash(arrays), np.uint8)
    with unless_finished(index), files.atomic(index) as temporary, temporary.open("wb") as file:
      np.savez(file, **arrays)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: Any) -> None:
    self._unfinished.__exit__(*error)


def _text(blob: np.ndarray | None) -> str:
  return "" if blob is None else blob.tobytes().decode("utf-8", "surrogateescape")


def _hash(arrays: dict[str, np.ndarray]) -> bytes:
  """Of the names, types, shapes and bytes of the arrays of an index."""
  made = hashlib.sha256()
  for name, values in sorted(arrays.items()):
    made.update(f"{name} {values.dtype.str} {values.shape}".encode())
    made.update(np.ascontiguousarray(values).tobytes())
  return made.digest()


def read_records(file: Path, start: int, stop: int) -> Iterator[bytes]:
  """Records `start` to `stop` of any array_record file; only a few are in memory at a time.

  Raises:
    InputError: the file is missing, is not an array_record file, or has fewer records.
  """
  for _, record in each_record(file, start, stop):
    if isinstance(record, InputError):
      raise record
    yield record


def each_record(file: Path, start: int, stop: int) -> Iterator[tuple[int, bytes | InputError]]:
  """The same with the number of each record, and an error instead of one that cannot be read.

  Raises:
    InputError: the file is missing, is not an array_record file, or has fewer records.
  """

  def read(numbers: range) -> list[bytes | InputError]:
    try:
      return list(reader.read(list(numbers)))
    except RuntimeError as error:
      if len(numbers) == 1:
        return [_not_read(file, error)]
    return [record for number in numbers for record in read(range(number, number + 1))]

  try:
    reader = array_record_module.ArrayRecordReader(str(file))
    if (found := reader.num_records()) < stop:
      raise IndexError(f"it has {found} of {stop} records")
  except (RuntimeError, IndexError) as error:
    raise _not_read(file, error) from None
  for first in range(start, stop, 16):
    numbers = range(first, min(first + 16, stop))
    yield from zip(numbers, read(numbers), strict=True)


def _not_read(file: Path, why: object) -> InputError:
  reason = " ".join(str(why).split())
  return InputError(f"{file}: missing or damaged ({reason}); copy or prepare it again")


def damaged(file: Path, why: object) -> InputError:
  """The error for a file of a store that is missing or damaged."""
  reason = " ".join(str(why).split())
  return InputError(f"{file}: missing or damaged ({reason}); delete the store, prepare it again")


@contextlib.contextmanager
def unless_finished(file: Path) -> Iterator[None]:
  """Ignores that a temporary file is missing in the body, if `file` exists.

  Two hosts may prepare into one folder at the same time. The first that finishes removes temporary
  files.
  """
  try:
    yield
  except FileNotFoundError:
    if not file.exists():
      raise
