"""JSON lines, plain, .gz or .zst: one document for each line."""

import dataclasses
import gzip
import io
import json
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from infini_jax.config import InputError
from infini_jax.data.sources.base import (
  Corpus,
  CorpusPart,
  Fields,
  Options,
  Record,
  Rows,
  digest,
  gather,
  glance,
  part_size,
  tried,
)
from infini_jax.data.sources.files import File, find_files, packing
from infini_jax.data.sources.walk import unreadable

# Most .json files are not JSON lines, so a folder's are not read; a spec can name them.
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PACKED = 3  # about the bytes of text for each byte of a compressed file


@dataclasses.dataclass(frozen=True)
class LinesPart(CorpusPart):
  """The lines that start in a range of bytes; all lines of a compressed file."""

  path: Path
  name: str
  start: int
  stop: int | None
  fields: Rows

  def each(self) -> Iterator[Record | InputError]:
    """A document for each line, at the place `FILE:BYTE`: the line's first byte, decompressed.

    Where the fields are read from whole files, the place is `FILE, line NUMBER`.
    """
    try:
      for number, (place, line) in enumerate(_lines(self.path, self.start, self.stop), 1):
        if line.strip():
          where = f", line {number}" if self.fields.of_whole_files else f":{place}"
          yield tried(self._record, f"{self.name}{where}", line)
    except InputError as error:
      yield error

  def _record(self, place: str, line: bytes) -> Record:
    return self.fields.record(self.splits, place, _parse(place, line))


def open_jsonl(spec: str, train: bool = True, kind: Any = Fields) -> Corpus:
  """The corpus `jsonl:FILES?text=FIELD&summary=FIELD&name=FIELD`.

  Args:
    spec: the spec.
    train: as for `open_corpus`.
    kind: what a line holds: a class of `Rows`.

  Raises:
    InputError: there are no such files, a file is not JSON lines, or there is no such field.
  """
  patterns, options = Options.split(spec, kind._fields)
  files, note, others = find_files(spec, patterns, SUFFIXES, train, options.skips)
  first = next((row for file in files for row in _first_row(file, options.skips)), None)
  if first is None:
    raise InputError(f"corpus {spec!r}: its files are empty; give others")
  fields = kind.choose(spec, options, list(first))
  parts: list[CorpusPart] = []
  sizes = [file.size * (PACKED if packing(file.path) else 1) for file in files]
  target = part_size(sum(sizes))
  for file, size in zip(files, sizes, strict=True):
    # A compressed file can only be read from its start.
    step = max(1, size) if packing(file.path) or fields.of_whole_files else target
    for start in range(0, size, step):
      stop = start + step if start + step < size else None
      part = LinesPart(
        file.splits, min(step, size - start), file.path, file.name, start, stop, fields
      )
      parts.append(part)
  listing = [f"{file.splits}\0{file.name}\0{file.size}" for file in files]
  return Corpus(
    spec,
    gather(parts),
    digest(["jsonl", *fields, *listing, *glance(parts, options.skips)]),
    note,
    fields.tells_summaries,
    others,
    options.skips,
  )


def named_rows(file: File) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of a file, each with its place `FILE, line NUMBER`. A file may be one JSON array.

  Raises:
    InputError: it cannot be read, or a row is not an object.
  """
  first = True
  for number, (_, line) in enumerate(_lines(file.path, 0, None), 1):
    if first and line.removeprefix(BOM_UTF8).lstrip()[:1] == b"[":
      yield from _array(file)
      return
    if line.removeprefix(BOM_UTF8).strip():
      first = False
      place = f"{file.path}, line {number}"
      yield place, _parse(place, line)


def _array(file: File) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    with _open(file.path) as opened:
      rows = json.load(opened)
  except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
    raise unreadable(file.path, " ".join(str(error).split())) from None
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise InputError(f"{file.path}, row {number}: holds {type(row).__name__}, not an object")
    yield f"{file.path}, row {number}", row


def _open(path: Path) -> IO[bytes]:
  kind = packing(path)
  if kind == ".gz":
    return gzip.open(path, "rb")  # type: ignore[return-value]
  if kind == ".zst":
    import pyarrow

    file = pyarrow.OSFile(os.fsencode(path))  # as bytes, which need not be UTF-8
    return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), 1 << 20)
  return open(path, "rb")


def _lines(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
  """The lines that start at byte `start` or later and before `stop`, each with its start."""
  try:
    with _open(path) as file:
      place = start
      if start:  # a line that crosses `start` belongs to the part before
        file.seek(start - 1)
        place += len(file.readline()) - 1
      while stop is None or place < stop:
        line = file.readline()
        if not line:
          return
        yield place, line
        place += len(line)
  except (OSError, EOFError, zlib.error) as error:
    raise unreadable(path, error) from None


def _parse(place: str, line: bytes) -> dict[str, Any]:
  """The object in a line."""
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    raise InputError(
      f"{place}: the line there is not UTF-8 text (byte {error.start}); save the file as UTF-8"
    ) from None
  except (ValueError, RecursionError) as error:
    reason = " ".join(str(error).split())
    raise InputError(
      f"{place}: the line there is not JSON ({reason}); a file of JSON lines has one object a line"
    ) from None
  if not isinstance(row, dict):
    raise InputError(
      f"{place}: the line there holds {type(row).__name__}, not an object with fields"
    )
  return row


def _first_row(file: File, skips: bool) -> Iterator[dict[str, Any]]:
  """The first row of a file, if it has one that can be read."""
  try:
    for place, line in _lines(file.path, 0, None):
      if not line.strip():
        continue
      try:
        yield _parse(f"{file.name}:{place}", line)
        return
      except InputError:
        if not skips:
          raise
  except InputError:
    if not skips:
      raise
