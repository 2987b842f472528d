"""Parquet files: one document for each row."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import InputError
from infini_jax.data.sources.base import (
  Corpus,
  CorpusPart,
  Damaged,
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
from infini_jax.data.sources.files import File, find_files

ROWS = 16  # rows read at a time; a row may be a book


@dataclasses.dataclass(frozen=True)
class RowsPart(CorpusPart):
  """Some rows of a file; always whole row groups."""

  path: Path
  name: str
  start: int
  stop: int
  fields: Rows

  def each(self) -> Iterator[Record | InputError]:
    """A document for each row, at the place `FILE:ROW`."""
    columns = [field for field in self.fields if field]
    try:
      for number, row in each_row(self.path, columns, self.start, self.stop):
        if isinstance(row, InputError):
          yield row
        else:
          yield tried(self.fields.record, self.splits, f"{self.name}:{number}", row)
    except InputError as error:
      yield error


def open_parquet(spec: str, train: bool = True, kind: Any = Fields) -> Corpus:
  """The corpus `parquet:FILES?text=FIELD&summary=FIELD&name=FIELD`.

  Args:
    spec: the spec.
    train: as for `open_corpus`.
    kind: what a row holds: a class of `Rows`.

  Raises:
    InputError: there are no such files, a file is not Parquet, or there is no such field.
  """
  patterns, options = Options.split(spec, kind._fields)
  files, note, others = find_files(spec, patterns, (".parquet",), train, options.skips)
  groups, parts = _row_groups(files, options.skips)
  files = [file for file in files if file.path in groups]
  if not files:
    raise InputError(f"corpus {spec!r}: none of its files can be read as Parquet; give others")
  fields = kind.choose(spec, options, _open(files[0].path).schema_arrow.names)
  target = part_size(sum(size for found in groups.values() for _, size in found))
  for file in files:
    start = row = filled = 0
    found = groups[file.path]
    for number, (rows, size) in enumerate(found, 1):
      row, filled = row + rows, filled + size
      if filled >= target or number == len(found):
        parts.append(RowsPart(file.splits, filled, file.path, file.name, start, row, fields))
        start, filled = row, 0
  if not parts:
    raise InputError(f"corpus {spec!r}: its files have no rows; give others")
  listing = [f"{file.splits}\0{file.name}\0{file.size}" for file in files]
  return Corpus(
    spec,
    gather(parts),
    digest(["parquet", *fields, *listing, *glance(parts, options.skips)]),
    note,
    fields.tells_summaries,
    others,
    options.skips,
  )


def read_rows(path: Path, columns: list[str], start: int, stop: int) -> Iterator[dict[str, Any]]:
  """Rows `start` to `stop` of a file; only a few are in memory at a time.

  Raises:
    InputError: the file is not Parquet, is damaged, lacks a column, or has text that is not UTF-8.
  """
  for _, row in each_row(path, columns, start, stop):
    if isinstance(row, InputError):
      raise row
    yield row


def named_rows(file: File, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of a file, each with its place `FILE, row NUMBER`, and those columns that it has.

  Raises:
    InputError: it is not Parquet, or is damaged.
  """
  names = _open(file.path).schema_arrow.names
  rows = sum(count for count, _ in row_groups(file.path))
  own = [column for column in columns if column in names]
  for number, row in enumerate(read_rows(file.path, own, 0, rows), 1):
    yield f"{file.path}, row {number}", row


def each_row(
  path: Path, columns: list[str], start: int, stop: int
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
  """The same with the number of each row, and an error instead of a row that cannot be read.

  If a row group is damaged, one error is yielded for all of it that cannot be read.

  Raises:
    InputError: the file is not Parquet, or lacks a column.
  """
  import pyarrow

  file = _open(path)
  names = file.schema_arrow.names
  if missing := set(columns) - set(names):
    raise InputError(f"{path}: has no column {min(missing)!r}, as other files of its corpus have")
  if several := [column for column in columns if names.count(column) > 1]:
    raise InputError(f"{path}: has several columns {several[0]!r}; rename all but one")
  first = 0
  for group in range(file.num_row_groups):
    row, end = first, first + file.metadata.row_group(group).num_rows
    first = end
    if end <= start or row >= stop:
      continue
    try:
      for batch in file.iter_batches(ROWS, [group], columns):
        for values in _values(path, row, batch):
          if start <= row < stop:
            yield row, values
          row += 1
    except (pyarrow.ArrowException, OSError) as error:
      yield row, _unreadable(path, error)


def _values(path: Path, first: int, batch: Any) -> list[dict[str, Any] | InputError]:
  """The fields of the rows of a batch, whose first row has the number `first`."""
  try:
    return batch.to_pylist()
  except UnicodeDecodeError as error:
    if batch.num_rows == 1:
      return [
        InputError(
          f"{path}: row {first} is not UTF-8 text (byte {error.start}); convert the data set"
        )
      ]
  one = (_values(path, first + i, batch.slice(i, 1)) for i in range(batch.num_rows))
  return [values for row in one for values in row]


def _row_groups(
  files: list[File], skips: bool
) -> tuple[dict[Path, list[tuple[int, int]]], list[CorpusPart]]:
  """The row groups of each file, and a part for each file that cannot be opened."""
  groups: dict[Path, list[tuple[int, int]]] = {}
  damaged: list[CorpusPart] = []
  for file in files:
    try:
      groups[file.path] = row_groups(file.path)
    except InputError as error:
      if not skips:
        raise
      damaged.append(Damaged(file.splits, 0, str(error)))
  return groups, damaged


def row_groups(path: Path) -> list[tuple[int, int]]:
  """The number of rows and of decompressed bytes of each row group.

  Raises:
    InputError: the file is not a Parquet file.
  """
  metadata = _open(path).metadata
  groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
  return [(group.num_rows, group.total_byte_size) for group in groups]


def _open(path: Path) -> Any:
  import pyarrow.parquet

  try:
    file = pyarrow.OSFile(os.fsencode(path))  # as bytes, which need not be UTF-8
    return pyarrow.parquet.ParquetFile(file)
  except (pyarrow.ArrowException, OSError) as error:
    raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
  reason = " ".join(str(error).split())
  return InputError(f"{path}: cannot be read as Parquet ({reason}); repair or remove it")
