"""Data sets of the package `datasets`, if it is installed: one document for each row."""

import dataclasses
import functools
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import (
  CALLED,
  Corpus,
  CorpusPart,
  Fields,
  Options,
  Record,
  choose_splits,
  digest,
  gather,
  glance,
  part_size,
  split_rule,
  tried,
)
from infini_jax.data.sources.files import left_out
from infini_jax.data.sources.specs import plain
from infini_jax.data.sources.walk import Way, one_split, walk
from infini_jax.paths import expand

ROWS = 16  # rows read at a time
CANNOT = (ValueError, OSError)  # the classes of Arrow's errors
UNKNOWN = 4000  # bytes for each row, if the data set does not give its size


@dataclasses.dataclass(frozen=True)
class HuggingFacePart(CorpusPart):
  """Some rows of a split."""

  name: str
  config: str
  split: str
  start: int
  stop: int
  fields: Fields

  def each(self) -> Iterator[Record | InputError]:
    """A document for each row, at the place `SPLIT:ROW`."""
    # Only the chosen columns, in Arrow's types: no picture or sound is decoded.
    asked = list(dict.fromkeys(filter(None, self.fields)))
    rows = _load(self.name, self.config)[self.split].select_columns(asked).with_format("arrow")
    for first in range(self.start, self.stop, ROWS):
      last = min(first + ROWS, self.stop)
      try:
        found = rows[first:last].to_pylist()
      except CANNOT:  # one of them: each by itself
        found = [self._one(rows, number) for number in range(first, last)]
      for number, row in enumerate(found, first):
        if isinstance(row, InputError):
          yield row
        else:
          yield tried(self.fields.record, self.splits, f"{self.split}:{number}", row)

  def _one(self, rows: Any, number: int) -> dict[str, Any] | InputError:
    try:
      return rows[number : number + 1].to_pylist()[0]
    except CANNOT as error:
      reason = " ".join(str(error).split())
      return InputError(
        f"hf:{self.name}: {self.split}:{number} cannot be read ({reason}); convert the data set"
      )


def open_huggingface(spec: str, train: bool = True) -> Corpus:
  """The corpus `hf:NAME?config=CONFIG&text=FIELD&train=SPLIT` and so on; NAME may be a folder.

  Raises:
    InputError: the package is missing, it cannot load the data set, or there is no such field.
  """
  place, options = Options.split(spec, ("config", *SPLITS, *Fields._fields))
  config = options.get("config", "")
  name, loaded = _loaded(spec, place, config)
  splits = choose_splits(spec, options, list(loaded), train)
  rule, note = split_rule(set(splits.values()))
  fields = Fields.choose(spec, options, loaded[next(iter(splits))].column_names)
  info = next(iter(loaded.values())).info
  all_rows = sum(map(len, loaded.values()))
  each = max(1, (info.dataset_size or UNKNOWN * all_rows) // max(1, all_rows))  # bytes of a row
  step = max(1, part_size(each * all_rows) // each)
  parts: list[CorpusPart] = []
  for split in splits:
    for start in range(0, len(loaded[split]), step):
      stop = min(start + step, len(loaded[split]))
      where = (name, config, split, start, stop)
      parts.append(HuggingFacePart(rule[splits[split]], each * (stop - start), *where, fields))
  if not parts:
    raise InputError(f"corpus {spec!r}: has no rows; choose another data set")
  listing = [f"{split}\0{len(loaded[split])}" for split in splits]
  return Corpus(
    spec,
    gather(parts),
    digest(["hf", *fields, *listing, *glance(parts, options.skips)]),
    note,
    bool(fields.summary),
    _left_out(name, config),
    options.skips,
  )


Rows = Callable[[Sequence[str]], Iterator[tuple[str, dict[str, Any]]]]
SIZED = re.compile(r"\d+[kKmM]")  # a config that is named by a length


def each_split(spec: str, place: str, config: str) -> Iterator[tuple[str, str, Rows]]:
  """Every split of some configs: their names, and a function that reads some columns of its rows.

  Args:
    spec: the spec of the corpus, for errors.
    place: the name of the data set, or a folder.
    config: the configs, with commas; empty: all that are named by a length, or else the only one.

  Raises:
    InputError: the package is missing, or it cannot load the data set.
  """
  chosen = config.split(",") if config else _lengths(expand(plain(place)))
  for one in chosen:
    name, loaded = _loaded(spec, place, one)
    for split in loaded:
      yield one, str(split), functools.partial(_rows, name, one, split)


def _rows(
  name: str, config: str, split: str, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
  data = _load(name, config)[split]
  own = [column for column in columns if column in data.column_names]
  for number, row in enumerate(data.select_columns(own)):
    yield f"hf:{name}, {config} {split}:{number}", dict(row)


def _lengths(name: str) -> list[str]:
  try:
    import datasets

    found = datasets.get_dataset_config_names(name)
  except Exception:  # any class: `_loaded` says why
    return [""]
  return [one for one in found if SIZED.fullmatch(one)] or [""]


def _loaded(spec: str, place: str, config: str) -> tuple[str, Any]:
  """The name of a data set, and all of its splits."""
  name = expand(plain(place))
  try:
    return name, _load(name, config)
  except ImportError:
    raise InputError(
      f"corpus {spec!r}: needs the package datasets: pip install -e '.[hf]'"
    ) from None
  except Exception as error:  # any class: no network, no such name, a config to choose
    said = ": ".join(" ".join(str(e).split()) for e in (error, error.__cause__) if e)[:300]
    ours = f"; or read its files by jsonl:{place} or parquet:{place}" if os.path.isdir(name) else ""
    raise InputError(f"corpus {spec!r}: datasets says: {said}{ours}") from None


@functools.lru_cache(1)
def _load(name: str, config: str) -> Any:
  """All splits of a data set; the rows stay on disk."""
  import datasets

  datasets.disable_progress_bars()
  files = _files(name, config)
  found = [way for ways in files.values() for way in ways]
  kept = one_split(found, lambda way: CALLED.get(way.split, ""))
  if len(kept) == len(found):
    return datasets.load_dataset(name, config or None)
  own = {
    split: [glob.escape(str(way.path)) for way in ways if way in kept]
    for split, ways in files.items()
  }
  named = {split: paths for split, paths in own.items() if paths}
  return datasets.load_dataset(name, config or None, data_files=named)


def _files(name: str, config: str) -> dict[str, list[Way]]:
  """The files that the package reads in a folder, by its names of splits; {} if not a folder."""
  if not os.path.isdir(name):
    return {}
  import datasets

  found = datasets.load_dataset_builder(name, config or None).config.data_files or {}
  way = lambda file, split: Way.to(Path(file))._replace(split=split)
  return {str(split): [way(file, str(split)) for file in files] for split, files in found.items()}


def _left_out(name: str, config: str) -> str:
  """A line about the other files of a folder."""
  taken = {way.real for ways in _files(name, config).values() for way in ways}
  found = walk([Way.to(Path(name))]) if os.path.isdir(name) else ()
  return left_out(way for _, rest in found for way in rest if way.real not in taken)
