"""The token store on disk: documents as token ids; any slice of a document can be read directly.

store.json                 written last: if it exists, the store is complete
plan.json                  what the store is made from
tokenizer.*                the tokenizer that made it
train/00000.array_record   blocks of up to 16,384 tokens, each of one document
train/00000.npz            the documents of that shard: names, tokens, bytes, words; its totals
train.summaries/...        the same for the summary of each document, if the corpus has summaries

The numbers of the shards of a split may have gaps: shards without documents are removed.
"""

import collections
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax import files
from infini_jax.config import ALL_SPLITS, SPLITS, InputError
from infini_jax.data.sources.base import digest
from infini_jax.data.store.shards import (
  BLOCK,
  TOTALS,
  Shard,
  damaged,
  summaries_of,
  unless_finished,
)
from infini_jax.data.tokenizers import Tokenizer, load_saved
from infini_jax.digests import matches, signed

FORMAT = 2
READABLE = (1, FORMAT)  # format 1 has no gaps in the numbers
DTYPES = ("<u2", "<u4")  # of ids on disk
MOST_SHARDS = 10**6  # of a split
OPEN = 256  # the most shards of a split whose files are open


class Documents:
  """The documents of one split. Several threads may read at the same time; the pickle is small.

  Documents of several stores alternate, so that the first few come from all of them.

  Args:
    stores: the shards of each store, by its name; "" for a single store.
    dtype: the type of the ids on disk.
    only: the name of the only document to include; "" for all documents.

  Attributes:
    stores: the names of the stores.
    store_X: (documents,) int32, the number of the store of each document, from 0.
    tokens: (documents,) int64, the tokens of each document.
    bytes: (documents,) int64, the bytes of its text in UTF-8.
    words: (documents,) int64, the words of its text, split at white space.
  """

  def __init__(self, stores: Mapping[str, Sequence[Shard]], dtype: str, only: str = ""):
    self._args = stores, dtype, only
    self._dtype, self.stores = np.dtype(dtype), list(stores)
    self._shards = [shard for shards in stores.values() for shard in shards]
    self._load()

  def __len__(self) -> int:
    return len(self.tokens)

  @functools.cached_property
  def names(self) -> list[str]:
    """The name of each document, its place in the corpus; read at the first use."""
    names = [
      f"{source}/{name}" if source else name
      for source, shards in self._args[0].items()
      for shard in shards
      for name in shard.names()
    ]
    return names if self._order is None else [names[i] for i in self._order.tolist()]

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
    block, shard = int(self._first_block[document]), int(self._shard_of[document])
    try:
      records = self._reader(shard).read(list(range(block + first, block + last + 1)))
    except (RuntimeError, IndexError) as error:
      raise damaged(self._shards[shard].record_file, error) from None
    ids = np.frombuffer(b"".join(records), self._dtype)
    return ids[start - first * BLOCK : stop - first * BLOCK].astype(np.int32)

  def check(self) -> None:
    """Opens every shard and reads the last token of its last document.

    Raises:
      InputError: a file is missing or damaged.
    """
    for shard in range(len(self._shards)):
      self._reader(shard)
      if len(mine := np.flatnonzero(self._shard_of == shard)):
        tokens = int(self.tokens[mine[-1]])
        self.read(int(mine[-1]), max(tokens - 1, 0), tokens)

  def _load(self) -> None:
    """Reads the indices of the shards; only these are kept in memory."""
    counts = [shard.counts() for shard in self._shards]
    counts = counts or [np.zeros((3, 0), np.int64)]
    sizes = [c.shape[1] for c in counts]
    blocks = [-(-c[0] // BLOCK) for c in counts]
    self._blocks = [int(b.sum()) for b in blocks]
    self._order: np.ndarray | None = None
    columns = [
      *np.concatenate(counts, axis=1),
      np.repeat(np.arange(len(counts)), sizes),
      np.concatenate([np.cumsum(b) - b for b in blocks]),
    ]
    source_of = [i for i, s in enumerate(self._args[0].values()) for _ in s] or [0]
    self.store_X = np.repeat(np.array(source_of, np.int32), sizes)
    if len(self.stores) > 1:
      place_X = np.concatenate(
        [np.arange(n) for n in np.bincount(self.store_X, minlength=len(self.stores))]
      )
      self._order = np.lexsort((self.store_X, place_X))
      columns = [column[self._order] for column in columns]
      self.store_X = self.store_X[self._order]
    if only := self._args[2]:
      wanted = np.flatnonzero([name == only for name in self.names])
      del self.names
      self._order = wanted if self._order is None else self._order[wanted]
      columns, self.store_X = [column[wanted] for column in columns], self.store_X[wanted]
    self.tokens, self.bytes, self.words, self._shard_of, self._first_block = columns
    self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def _reader(self, shard: int) -> Any:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = self._shards[shard].open(self._blocks[shard])
        if len(self._readers) > OPEN:  # the least recently used
          self._readers.popitem(last=False)
      self._readers.move_to_end(shard)
      return self._readers[shard]

  def __getstate__(self) -> tuple[Mapping[str, Sequence[Shard]], str, str]:
    return self._args

  def __setstate__(self, state: tuple[Mapping[str, Sequence[Shard]], str, str]) -> None:
    self.__init__(*state)  # type: ignore[misc]


class Store:
  """A complete token store.

  Attributes:
    folder: the folder of the store.
    source: the spec of the corpus that it was made from.
    spec: the spec of its tokenizer.
    fingerprint: a short hash of corpus and tokenizer; equal for the same text and tokenizer.
    splits: for each split the numbers of documents, tokens, bytes, words, characters, shards, and
      of the empty and the short documents that were left out.
    has_summaries: whether each document comes with a summary.
    dtype: the type of the ids on disk.
    weights: the shares of mixed stores in the tokens; empty for a single store.
  """

  weights: tuple[float, ...] = ()

  def __init__(self, folder: Path, description: dict[str, Any]):
    self.folder = folder
    self.source: str = description["source"]
    self.spec: str = description["tokenizer"]
    self.fingerprint: str = description["fingerprint"]
    self.splits: dict[str, dict[str, int]] = description["splits"]
    self.has_summaries: bool = description.get("summaries", False)
    self.dtype: str = description["dtype"]
    self._numbers: dict[str, list[int]] = description.get("shards", {})

  @classmethod
  def open(cls, folder: str | Path) -> "Store":
    """Opens a store.

    Raises:
      InputError: the folder is missing, is not a store, is incomplete, or has another format.
    """
    folder = Path(folder)
    if not is_store(folder):
      raise InputError(f"{folder}: not a token store; make one with `infini-jax prepare`")
    if not (folder / "store.json").exists():
      raise InputError(
        f"{folder}: this store is not complete; run the command that prepared it again: "
        f"it continues where it stopped"
      )
    try:
      description = json.loads((folder / "store.json").read_text("utf-8"))
      version, is_whole = description["format"], matches(description)
    except (ValueError, KeyError, TypeError):
      raise InputError(f"{folder}/store.json: not of a token store; prepare it again") from None
    if version not in READABLE:
      raise InputError(
        f"{folder}: store of format {version!r}, this program reads {FORMAT}; "
        f"{'update infini_jax' if str(version) > str(FORMAT) else 'prepare it again'}"
      )
    if not is_whole:
      raise damaged(folder / "store.json", "other bytes than were written")
    try:
      wrong = _of_another_kind(description)
    except KeyError as error:
      raise InputError(f"{folder}/store.json: lacks {error}; prepare it again") from None
    if wrong:
      raise InputError(f"{folder}/store.json: {wrong!r} is not of its kind; prepare it again")
    return cls(folder, description)

  @property
  def text(self) -> str:
    """A short hash of its documents, without the tokenizer; in older stores the fingerprint."""
    try:
      plan = json.loads((self.folder / "plan.json").read_text("utf-8"))
      return digest([plan["documents"], str(plan["min_tokens"])])
    except (OSError, ValueError, KeyError, TypeError):
      return self.fingerprint

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that made the store; each access loads it again."""
    return load_saved(self.folder)

  def split(self, name: str, document: str = "") -> Documents:
    """The documents of a split, or of all splits for "all"; or only the document of that name.

    Raises:
      InputError: there is no such split, or an index of it is missing or damaged.
    """
    return Documents({"": self.shards(name)}, self.dtype, document)

  def shards(self, name: str) -> list[Shard]:
    """The shards of a split, or of all splits for "all"."""
    return [s for split in _each(name) for s in self._shards(split, self.folder / split)]

  def summaries(self, name: str, document: str = "") -> Documents:
    """The summaries of a split's documents, in the same order; a missing summary has no tokens.

    Raises:
      InputError: the corpus has no summaries, there is no such split, or an index is missing or
        damaged.
    """
    if not self.has_summaries:
      raise InputError(
        f"{self.folder}: made of {self.source}, without summaries; name their field with "
        f"?summary=FIELD and prepare it again"
      )
    shards = [s for n in _each(name) for s in self._shards(n, summaries_of(self.folder / n))]
    return Documents({"": shards}, self.dtype, document)

  def all_shards(self) -> list[Shard]:
    """The shards of all documents and summaries."""
    found = self.shards(ALL_SPLITS)
    for split in SPLITS if self.has_summaries else ():
      found += self._shards(split, summaries_of(self.folder / split))
    return found

  def _shards(self, split: str, folder: Path) -> list[Shard]:
    if split not in self.splits:
      raise InputError(f"split {split!r}: choose one of {', '.join(self.splits)}")
    numbers = self._numbers.get(split, range(self.splits[split]["shards"]))
    return [Shard(folder, number) for number in numbers]


def _of_another_kind(description: dict[str, Any]) -> str:
  """The first field whose value cannot be used, or "". Stores of older programs have no hash.

  Raises:
    KeyError: a field is missing.
  """
  whole = lambda numbers: all(type(n) is int and n >= 0 for n in numbers)
  texts = ("source", "tokenizer", "fingerprint")
  good = {name: isinstance(description[name], str) for name in texts}
  splits, shards = description["splits"], description.get("shards", {})
  good |= {
    "dtype": description["dtype"] in DTYPES,
    "splits": isinstance(splits, dict)
    and all(
      isinstance(c, dict) and whole(c.values()) and c["shards"] <= MOST_SHARDS
      for c in splits.values()
    ),
    "shards": isinstance(shards, dict)
    and all(isinstance(numbers, list) and whole(numbers) for numbers in shards.values()),
    "summaries": isinstance(description.get("summaries", False), bool),
  }
  return next((name for name, is_good in good.items() if not is_good), "")


def _each(split: str) -> tuple[str, ...]:
  return SPLITS if split == ALL_SPLITS else (split,)


def is_store(folder: Path) -> bool:
  """Whether a folder is a token store, complete or not."""
  return (folder / "plan.json").exists() or (folder / "store.json").exists()


def write_store(folder: Path, description: dict[str, Any], shards: dict[str, int]) -> Store:
  """Completes a store after all its shards are written; this is the last step of `prepare`.

  Args:
    folder: the folder of the store.
    description: source, tokenizer (specs), tokenizer_fingerprint, dtype, fingerprint, summaries.
    shards: the number of shards of each split, including shards without documents.
  """
  splits, numbers = {}, {}
  for split in SPLITS:
    totals = [Shard(folder / split, number).totals() for number in range(shards[split])]
    numbers[split] = [number for number, found in enumerate(totals) if found[0]]
    total = sum(totals, np.zeros(len(TOTALS), np.int64)).tolist()
    splits[split] = dict(zip(TOTALS, total, strict=True)) | {"shards": len(numbers[split])}
  for split, kept in numbers.items():
    for number in set(range(shards[split])) - set(kept):
      for place in (folder / split, summaries_of(folder / split)):
        Shard(place, number).index_file.unlink(missing_ok=True)
  description = {"format": FORMAT} | description | {"splits": splits, "shards": numbers}
  write_json(folder / "store.json", signed(description))
  # Temporary files of interrupted runs. A run that still writes finds its shards finished.
  for file in files.left_over(folder):
    file.unlink(missing_ok=True)
  return Store(folder, description)


def write_json(file: Path, content: dict[str, Any]) -> None:
  """Writes a JSON file of a store, completely or not at all."""
  with unless_finished(file):
    files.write_json(file, content)
