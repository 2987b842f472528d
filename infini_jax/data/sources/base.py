"""The common base of all kinds of corpora: parts, records, fields, splits, options."""

import abc
import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.specs import advice, cut, plain
from infini_jax.digests import short_hash

MB = 1_000_000
SMALLEST, LARGEST = 2 * MB, 64 * MB  # bytes of text in a part, if the kind of corpus allows it
HELD_OUT = 0.04  # the share of documents in validation, and in test, if a hash decides
CALLED = {split: split for split in SPLITS} | dict.fromkeys(("valid", "val", "dev"), "validation")
# Whole words of a name only: `c4-validation.00001.json.gz`, but not `contest.jsonl`.
NAMED = re.compile(rf"(?<![a-z])({'|'.join(CALLED)})(?![a-z])")
BAD = ("stop", "skip")  # what is done about a document that cannot be read
SAMPLED = 32  # a sample is taken from at least this many parts, if there are as many


class Record(NamedTuple):
  """One document. Its `name` is unique in the corpus, and the same on every machine."""

  split: str
  name: str
  text: str
  summary: str = ""


@dataclasses.dataclass(frozen=True)
class CorpusPart(abc.ABC):
  """A part of a corpus: what one worker reads. Its pickle is small.

  Attributes:
    splits: the splits of its documents. If there are several, a hash of the document's name
      decides, and most documents go to the first split.
    size: approximately the bytes of its text.
  """

  splits: tuple[str, ...]
  size: int

  @abc.abstractmethod
  def each(self) -> Iterator[Record | InputError]:
    """Its documents, one at a time, always in the same order.

    Instead of a document that cannot be read, or has no text in the chosen field, it yields the
    error that says why. If the rest of a file cannot be read, one error is yielded for all of it.
    """

  def read(self, skips: bool = False) -> Iterator[Record]:
    """The documents alone.

    Args:
      skips: a document that cannot be read is left out.

    Raises:
      InputError: a document cannot be read, and `skips` is False.
    """
    for record in self.each():
      if not isinstance(record, InputError):
        yield record
      elif not skips:
        raise record


@dataclasses.dataclass(frozen=True)
class Damaged(CorpusPart):
  """A file that cannot be opened.

  Attributes:
    why: one line about it.
  """

  why: str

  def each(self) -> Iterator[Record | InputError]:
    """The error alone."""
    yield InputError(self.why)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """All documents of a corpus, in parts.

  Attributes:
    spec: the spec that it was opened with.
    parts: its parts, the same at every opening.
    fingerprint: a short hash of its content; it does not change when the corpus is moved.
    note: a line about its splits for the user; may be empty.
    summaries: whether each document comes with a summary.
    left_out: a line about files that are not part of it; empty if there are none.
    skips: whether documents that cannot be read are left out and counted; else they are errors.
  """

  spec: str
  parts: list[CorpusPart]
  fingerprint: str
  note: str = ""
  summaries: bool = False
  left_out: str = ""
  skips: bool = False

  def sample(self, characters: int) -> Iterator[str]:
    """About this many characters of training text, from parts spread evenly over the corpus."""
    parts = [part for part in self.parts if "train" in part.splits]
    chosen = parts[:: max(1, len(parts) // SAMPLED)]
    share = max(1, characters // max(1, len(chosen)))
    for part in chosen:
      texts, read = [], 0
      for record in part.read(self.skips):
        if record.split == "train" and record.text:
          texts.append(record.text)
          read += len(record.text)
        if read >= max(8 * share, SMALLEST):
          break
      for text in texts:
        yield middle(text, max(1, share // len(texts)))


class Options(dict[str, str]):
  """The options after the question mark of a spec: `?text=content&name=id`; each kind has `bad`."""

  @classmethod
  def split(cls, spec: str, allowed: Collection[str]) -> tuple[str, "Options"]:
    """The text of a spec between its kind and the question mark, as written, and its options.

    Raises:
      InputError: an option is not in `allowed`, or has no value.
    """
    place, *query = cut(spec.partition(":")[2], "?", 1)
    options, allowed = cls(), (*allowed, "bad")
    for item in filter(None, cut("".join(query), "&")):
      name, _, value = item.partition("=")
      if name not in allowed or not value:
        raise InputError(
          f"corpus {spec!r}: option {item!r} is not one of "
          f"{', '.join(f'{option}=...' for option in allowed) or 'its options: it has none'}"
          f"{advice('?')}"
        )
      options[name] = plain(value)
    if (bad := options.get("bad", "stop")) not in BAD:
      raise InputError(f"corpus {spec!r}: ?bad={bad}: choose {' or '.join(BAD)}")
    return place, options

  @property
  def skips(self) -> bool:
    """Whether documents that cannot be read are left out: `?bad=skip`."""
    return self.get("bad") == "skip"


class Rows(Protocol):
  """A kind of row of a data set: a tuple of the fields that are read of it, "" for none."""

  @property
  def of_whole_files(self) -> bool:
    """Whether a file of lines is read as one part, so that errors can count its lines."""
    ...

  @classmethod
  def choose(cls, spec: str, options: Options, there_are: Collection[str]) -> "Rows":
    """The fields that the options name, else the usual ones."""
    ...

  def record(self, splits: tuple[str, ...], place: str, row: Mapping[str, Any]) -> Record:
    """The document in a row."""
    ...

  @property
  def tells_summaries(self) -> bool:
    """Whether each document comes with a summary."""
    ...

  def __iter__(self) -> Iterator[str]: ...


class Fields(NamedTuple):
  """The fields of a data set's rows that hold text, summary and name; "" for none."""

  text: str
  summary: str = ""
  name: str = ""

  @classmethod
  def choose(
    cls, spec: str, options: Options, there_are: Collection[str], usual: "Fields | None" = None
  ) -> "Fields":
    """The fields that the options name, else the usual ones of this data set.

    Raises:
      InputError: the data set has no such field.
    """
    usual = usual or cls("text")
    kept = (usual.text, *(field if field in there_are else "" for field in usual[1:]))
    asked = (options.get(role, field) for role, field in zip(cls._fields, kept, strict=True))
    chosen = cls(*asked)
    for role, field in chosen._asdict().items():
      if field and field not in there_are:
        raise InputError(
          f"corpus {spec!r}: has no field {field!r}; name one of {', '.join(there_are)} "
          f"with ?{role}=FIELD"
        )
    return chosen

  @property
  def of_whole_files(self) -> bool:
    """A document's place is a byte, so a file may be read in parts."""
    return False

  @property
  def tells_summaries(self) -> bool:
    """Whether a field holds summaries."""
    return bool(self.summary)

  def record(self, splits: tuple[str, ...], place: str, row: Mapping[str, Any]) -> Record:
    """The document in a row.

    Args:
      splits: the splits of its part.
      place: the place of the row in the corpus, which is unique.
      row: the fields of the row.

    Raises:
      InputError: a field is missing, or is not text.
    """
    name = place
    if self.name and row.get(self.name) is not None:
      value = row[self.name]
      value = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
      name = " ".join([place, *_encodable(value).replace("\0", " ").split()])
    text = _text(place, self.text, row)
    summary = _text(place, self.summary, row) if self.summary else ""
    return Record(choose_split(splits, place), name, text, summary)


def choose_splits(
  spec: str, options: Options, there_are: Collection[str], train: bool = True
) -> dict[str, str]:
  """From each split that a data set has to train, validation or test; `?train=NAME` changes this.

  Raises:
    InputError: the data set has no split of a given name, or none for train although `train` is
      True.
  """
  chosen = {name: CALLED[name] for name in there_are if name in CALLED}
  for split in (split for split in SPLITS if split in options):
    if options[split] not in there_are:
      raise InputError(
        f"corpus {spec!r}: has no split {options[split]!r}; choose one of {', '.join(there_are)}"
      )
    chosen = {name: ours for name, ours in chosen.items() if ours != split}
    chosen[options[split]] = split
  if "train" not in chosen.values() and (train or not chosen):
    raise InputError(
      f"corpus {spec!r}: has no train split, only {', '.join(there_are) or 'none at all'}; choose "
      f"one with ?train=NAME"
    )
  return dict(sorted(chosen.items()))


def named_split(name: str) -> str:
  """The split that a name or path contains as a word; the last, if there are several; else ""."""
  words = NAMED.findall(name.lower())
  return CALLED[words[-1]] if words else ""


def split_rule(found: Collection[str]) -> tuple[dict[str, tuple[str, ...]], str]:
  """`CorpusPart.splits` for each split that a corpus has, and a note about the missing splits.

  A missing split is taken from train: 4 % of it, chosen by a hash of each document's place.
  """
  missing = tuple(split for split in SPLITS if split not in found)
  rule = {split: (split, *missing) if split == "train" else (split,) for split in found}
  share = f"{HELD_OUT:.0%} of train{' each' if len(missing) > 1 else ''}, chosen by a hash"
  note = f"no {' and no '.join(missing)} split in the corpus: {share}"
  return rule, note if missing and "train" in found else ""


def part_size(total: int) -> int:
  """The bytes of a part, for a corpus of `total` bytes."""
  return max(SMALLEST, min(LARGEST, total // 64))


@dataclasses.dataclass(frozen=True)
class Group(CorpusPart):
  """Small parts that are read as one part, because each part becomes one shard."""

  parts: list[CorpusPart]

  def each(self) -> Iterator[Record | InputError]:
    """The documents of each part in turn."""
    for part in self.parts:
      yield from part.each()


def gather(parts: Sequence[CorpusPart]) -> list[CorpusPart]:
  """Joins small parts to parts of about `part_size`; the documents of a split keep their order."""
  target = part_size(sum(part.size for part in parts))
  groups: list[list[CorpusPart]] = []
  filling: dict[tuple[str, ...], tuple[list[CorpusPart], int]] = {}
  for part in parts:
    members, size = filling.pop(part.splits, ([], 0))
    if not members:
      groups.append(members)
    members.append(part)
    if size + part.size < target:
      filling[part.splits] = members, size + part.size
  return [
    members[0]
    if len(members) == 1
    else Group(members[0].splits, sum(part.size for part in members), members)
    for members in groups
  ]


def glance(parts: Sequence[CorpusPart], skips: bool) -> Iterator[str]:
  """The first document of a few parts, for the fingerprint; it fails if a field is not text."""
  for part in parts[:: max(1, len(parts) // 16)]:
    yield from next(part.read(skips), ())


def tried(make: Callable[..., Record], *args: Any) -> Record | InputError:
  """What a function returns, or the InputError that it raises."""
  try:
    return make(*args)
  except InputError as error:
    return error


def digest(parts: Iterable[str]) -> str:
  """A short hash of strings."""
  return short_hash(part.encode("utf-8", "surrogateescape") + b"\0" for part in parts)


def middle(text: str, characters: int) -> str:
  """This many characters from the middle of a text."""
  start = max(0, (len(text) - characters) // 2)
  return text[start : start + characters]


def _text(place: str, field: str, row: Mapping[str, Any]) -> str:
  """The text of a field; "" for null."""
  if field not in row:
    raise InputError(
      f"{place}: has no field {field!r}; name one of {', '.join(row) or 'none'}, or repair the row"
    )
  value = row[field]
  if isinstance(value, bytes):
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError as error:
      raise InputError(
        f"{place}: field {field!r} is not UTF-8 text (byte {error.start}); name another field, or "
        f"convert the data set"
      ) from None
  if value is not None and not isinstance(value, str):
    raise InputError(
      f"{place}: field {field!r} holds {type(value).__name__}, not text; name another field"
    )
  return _encodable(value or "")


def _encodable(text: str) -> str:
  """The text with "?" for characters that UTF-8 cannot encode, such as half a surrogate pair."""
  return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def choose_split(splits: tuple[str, ...], name: str) -> str:
  """The split of the document with this name, of those that its part may have."""
  hashed = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
  share = int.from_bytes(hashed) / 2**64
  taken = 1 + int(share / HELD_OUT)
  return splits[taken] if taken < len(splits) else splits[0]
