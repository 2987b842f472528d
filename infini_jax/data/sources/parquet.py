"""Parquet files: one document for each row."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infini_jax.config import InputError
from infini_jax.data.sources.base import (
  Corpus,
  Fields,
  Options,
  Part,
  Record,
  digest,
  gather,
  glance,
  part_size,
)
from infini_jax.data.sources.files import find_files

ROWS = 16  # rows read at a time; a row may be a book


@dataclasses.dataclass(frozen=True)
class RowsPart(Part):
  """Some rows of a file; always whole row groups."""

  path: Path
  name: str
  start: int
  stop: int
  fields: Fields

  def read(self) -> Iterator[Record]:
    """A document for each row, at the place `FILE:ROW`."""
    columns = [field for field in self.fields if field]
    rows = read_rows(self.path, columns, self.start, self.stop)
    for number, row in enumerate(rows, self.start):
      yield self.fields.record(self.splits, f"{self.name}:{number}", row)


def open_parquet(spec: str, train: bool = True) -> Corpus:
  """The corpus `parquet:FILES?text=FIELD&summary=FIELD&name=FIELD`.

  Raises:
    InputError: there are no such files, a file is not Parquet, or there is no such field.
  """
  patterns, options = Options.split(spec, Fields._fields)
  files, note, others = find_files(spec, patterns, (".parquet",), train)
  fields = Fields.choose(spec, options, _open(files[0].path).schema_arrow.names)
  groups = {file.path: row_groups(file.path) for file in files}
  target = part_size(sum(size for found in groups.values() for _, size in found))
  parts: list[Part] = []
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
    digest(["parquet", *fields, *listing, *glance(parts)]),
    note,
    bool(fields.summary),
    others,
  )


def read_rows(path: Path, columns: list[str], start: int, stop: int) -> Iterator[dict[str, Any]]:
  """Rows `start` to `stop` of a file; only a few are in memory at a time.

  Raises:
    InputError: the file is not Parquet, is damaged, lacks a column, or has text that is not UTF-8.
  """
  import pyarrow

  file = _open(path)
  names = file.schema_arrow.names
  if missing := set(columns) - set(names):
    raise InputError(f"{path}: has no column {min(missing)!r}, as other files of its corpus have")
  if several := [column for column in columns if names.count(column) > 1]:
    raise InputError(f"{path}: has several columns {several[0]!r}; rename all but one")
  row = 0
  try:
    for group in range(file.num_row_groups):
      end = row + file.metadata.row_group(group).num_rows
      if end <= start or row >= stop:
        row = end
        continue
      for batch in file.iter_batches(ROWS, [group], columns):
        for values in batch.to_pylist():
          if start <= row < stop:
            yield values
          row += 1
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path}: row {row}, or one of the next {ROWS}, is not UTF-8 text (byte {error.start}); "
      f"convert the data set"
    ) from None
  except (pyarrow.ArrowException, OSError) as error:
    raise _unreadable(path, error) from None


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
