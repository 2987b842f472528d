"""The token store on disk: documents as token ids, any slice of which is read at once.

store.json                 written last: its presence says that the store is complete
plan.json                  what the store is made from
tokenizer.*                the tokenizer that made it
train/00000.array_record   blocks of up to 16,384 tokens, each of one document
train/00000.npz            the documents of that shard: names, tokens, bytes, words
"""

import json
import os
import socket
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from infini_jax.config import SPLITS, InputError
from infini_jax.data.tokenizers import Tokenizer, load_saved

FORMAT = 1
BLOCK = 16_384  # tokens of a record: a slice of a book touches only its blocks


class Entry(NamedTuple):
  """One document to store."""

  name: str
  ids: np.ndarray  # (n,) token ids
  bytes: int  # of its text in UTF-8
  words: int  # of its text, split at white space


class Documents:
  """The documents of one split. Threads may read it at the same time; it pickles small.

  Attributes:
    tokens: (documents,) int64, the tokens of each document.
    bytes: (documents,) int64, the bytes of its text in UTF-8.
    words: (documents,) int64, the words of its text, split at white space.
    names: where each document stands in the corpus.
  """

  def __init__(self, folder: Path, shards: int, dtype: str):
    self._folder, self._shards, self._dtype = folder, shards, np.dtype(dtype)
    self._load()

  def __len__(self) -> int:
    return len(self.tokens)

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of a document.

    Returns:
      int32, shape (stop - start,).

    Raises:
      IndexError: the document does not have these tokens.
      InputError: the file that should hold them is missing or damaged.
    """
    if not 0 <= start <= stop <= self.tokens[document]:
      raise IndexError(
        f"tokens {start} to {stop} of document {self.names[document]!r}, "
        f"which has {self.tokens[document]}"
      )
    if start == stop:
      return np.zeros(0, np.int32)
    first, last = start // BLOCK, (stop - 1) // BLOCK
    block, shard = int(self._first_block[document]), int(self._shard[document])
    try:
      records = self._reader(shard).read(list(range(block + first, block + last + 1)))
    except (RuntimeError, IndexError) as error:
      raise _damaged(_record_file(self._folder, shard), error) from None
    ids = np.frombuffer(b"".join(records), self._dtype)
    return ids[start - first * BLOCK : stop - first * BLOCK].astype(np.int32)

  def _load(self) -> None:
    """Reads the indices of the shards: all that is held in memory."""
    indices = [_read_index(_index_file(self._folder, i)) for i in range(self._shards)]
    self.names = [name for index in indices for name in index["names"]]
    counts = [index["counts"] for index in indices] or [np.zeros((3, 0), np.int64)]
    self.tokens, self.bytes, self.words = np.concatenate(counts, axis=1)
    self._shard = np.repeat(np.arange(len(counts)), [c.shape[1] for c in counts])
    blocks = [-(-c[0] // BLOCK) for c in counts]
    self._first_block = np.concatenate([np.cumsum(b) - b for b in blocks])
    self._blocks = [int(b.sum()) for b in blocks]
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def _reader(self, shard: int) -> Any:
    with self._lock:
      if shard not in self._readers:
        file = _record_file(self._folder, shard)
        # Reading ahead serves a scan; lanes jump between documents.
        options = "readahead_buffer_size:0"
        reader = array_record_module.ArrayRecordReader(str(file), options)
        found = reader.num_records()  # 0 where the file is missing: the reader does not say so
        if found != self._blocks[shard]:
          raise _damaged(file, f"{found} records instead of {self._blocks[shard]}")
        self._readers[shard] = reader
      return self._readers[shard]

  def __getstate__(self) -> tuple[Path, int, str]:
    return self._folder, self._shards, self._dtype.str

  def __setstate__(self, state: tuple[Path, int, str]) -> None:
    self.__init__(*state)  # type: ignore[misc]


class Store:
  """A complete token store.

  Attributes:
    folder: where it is.
    source: the corpus it was made from, as it was asked for.
    spec: the tokenizer, as it was asked for.
    fingerprint: a short hash of corpus and tokenizer; the same where the same text was prepared.
    splits: of each split: documents, tokens, bytes, words, shards.
  """

  def __init__(self, folder: Path, description: dict[str, Any]):
    self.folder = folder
    self.source: str = description["source"]
    self.spec: str = description["tokenizer"]
    self.fingerprint: str = description["fingerprint"]
    self.splits: dict[str, dict[str, int]] = description["splits"]
    self._dtype: str = description["dtype"]

  @classmethod
  def open(cls, folder: str | Path) -> "Store":
    """Opens a store.

    Raises:
      InputError: the folder is missing, is no store, is incomplete, or is of another format.
    """
    folder = Path(folder)
    if not is_store(folder):
      raise InputError(f"{folder}: not a token store; make one with `infini-jax prepare`")
    if not (folder / "store.json").exists():
      raise InputError(
        f"{folder}: this store is not complete; run the same `infini-jax prepare` again, "
        f"it goes on where it stopped"
      )
    try:
      description = json.loads((folder / "store.json").read_text("utf-8"))
      version = description["format"]
    except (ValueError, KeyError, TypeError):
      raise InputError(f"{folder}/store.json: not of a token store; prepare it again") from None
    if version != FORMAT:
      raise InputError(
        f"{folder}: store of format {version!r}, this program reads {FORMAT}; "
        f"{'update infini_jax' if str(version) > str(FORMAT) else 'prepare it again'}"
      )
    try:
      return cls(folder, description)
    except KeyError as error:
      raise InputError(f"{folder}/store.json: lacks {error}; prepare it again") from None

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that made the store, loaded anew at each call."""
    return load_saved(self.folder)

  def split(self, name: str) -> Documents:
    """The documents of a split.

    Raises:
      InputError: no such split, or an index of it is missing or damaged.
    """
    if name not in self.splits:
      raise InputError(f"split {name!r}: choose one of {', '.join(self.splits)}")
    return Documents(self.folder / name, self.splits[name]["shards"], self._dtype)


def is_store(folder: Path) -> bool:
  """Whether a folder is a token store, complete or not."""
  return (folder / "plan.json").exists() or (folder / "store.json").exists()


def write_store(folder: Path, description: dict[str, Any], shards: dict[str, int]) -> Store:
  """Completes a store whose shards are all there; the last thing done to it.

  Args:
    folder: the store.
    description: source, tokenizer (specs), tokenizer_fingerprint, dtype, fingerprint.
    shards: the number of shards of each split.
  """
  splits = {}
  for split in SPLITS:
    totals = np.zeros(4, np.int64)
    for number in range(shards[split]):
      totals += shard_totals(folder / split, number)
    names = ("documents", "tokens", "bytes", "words")
    splits[split] = dict(zip(names, totals.tolist(), strict=True)) | {"shards": shards[split]}
  description = {"format": FORMAT} | description | {"splits": splits}
  write_json(folder / "store.json", description)
  # What interrupted runs left; one that is still running finds its shards finished.
  for file in folder.rglob("*.tmp"):
    file.unlink(missing_ok=True)
  return Store(folder, description)


def write_shard(folder: Path, number: int, entries: Iterable[Entry], dtype: str) -> None:
  """Writes one shard: its records, then its index, whose presence says that it is finished.

  Args:
    folder: that of the split.
    number: of the shard in its split.
    entries: its documents; they are written as they come.
    dtype: of the ids on disk, such as "<u2".
  """
  folder.mkdir(parents=True, exist_ok=True)
  records = _record_file(folder, number)
  temporary = _temporary(records)
  writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,zstd:3")
  names, counts = [], []
  for entry in entries:
    ids = entry.ids.astype(dtype)
    for start in range(0, len(ids), BLOCK):
      writer.write(ids[start : start + BLOCK].tobytes())
    names.append(entry.name)
    counts.append((len(ids), entry.bytes, entry.words))
  writer.close()
  _publish(temporary, records)
  index = _index_file(folder, number)
  temporary = _temporary(index)
  with open(temporary, "wb") as file:
    blob = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)
    np.savez(file, names=blob, counts=np.array(counts, np.int64).reshape(-1, 3).T)
  _publish(temporary, index)


def has_shard(folder: Path, number: int) -> bool:
  """Whether a shard is finished."""
  return _index_file(folder, number).exists() and _record_file(folder, number).exists()


def shard_totals(folder: Path, number: int) -> np.ndarray:
  """Documents, tokens, bytes and words of a finished shard: int64, shape (4,)."""
  counts = _read_index(_index_file(folder, number))["counts"]
  return np.array([counts.shape[1], *counts.sum(axis=1)], np.int64)


def write_json(file: Path, content: dict[str, Any]) -> None:
  """Writes a JSON file, all of it or nothing."""
  temporary = _temporary(file)
  temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
  _publish(temporary, file)


def _read_index(file: Path) -> dict[str, Any]:
  try:
    with np.load(file, allow_pickle=False) as index:
      counts, blob = index["counts"], index["names"].tobytes()
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise _damaged(file, error) from None
  names = blob.decode("utf-8", "surrogateescape").split("\0") if counts.shape[1] else []
  return {"names": names, "counts": counts}


def _damaged(file: Path, why: object) -> InputError:
  reason = " ".join(str(why).split())
  return InputError(f"{file}: missing or damaged ({reason}); delete the store, prepare it again")


def _record_file(folder: Path, number: int) -> Path:
  return folder / f"{number:05d}.array_record"


def _index_file(folder: Path, number: int) -> Path:
  return folder / f"{number:05d}.npz"


def _temporary(file: Path) -> Path:
  """A name of this process's own: two hosts may prepare into one folder at the same time."""
  return file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _publish(temporary: Path, file: Path) -> None:
  try:
    os.replace(temporary, file)
  except FileNotFoundError:  # another process finished the same store, and tidied up
    if not file.exists():
      raise
