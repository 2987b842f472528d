"""Data sets of the `datasets` package, where it is installed: one document a row."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import (
  Corpus,
  Fields,
  Options,
  Part,
  Record,
  choose_splits,
  digest,
  gather,
  glance,
  part_size,
  split_rule,
)
from infini_jax.data.sources.specs import plain

ROWS = 16  # read at a time
UNKNOWN = 4000  # bytes of a row, where the data set does not tell


@dataclasses.dataclass(frozen=True)
class HuggingFacePart(Part):
  """Some rows of a split."""

  name: str
  config: str
  split: str
  start: int
  stop: int
  fields: Fields

  def read(self) -> Iterator[Record]:
    """A document for each row; `SPLIT:ROW` says where it stands."""
    # Selected before a row is read: no picture or sound of another column is decoded.
    asked = list(dict.fromkeys(filter(None, self.fields)))
    rows = _load(self.name, self.config)[self.split].select_columns(asked)
    for first in range(self.start, self.stop, ROWS):
      columns = rows[first : min(first + ROWS, self.stop)]
      for i in range(len(columns[self.fields.text])):
        row = {name: column[i] for name, column in columns.items()}
        yield self.fields.record(self.splits, f"{self.split}:{first + i}", row)


def open_huggingface(spec: str) -> Corpus:
  """The corpus `hf:NAME?config=CONFIG&text=FIELD&train=SPLIT` and so on; NAME may be a folder.

  Raises:
    InputError: the package is missing, or what it says of such a data set; no such field.
  """
  place, options = Options.split(spec, ("config", *SPLITS, *Fields._fields))
  name = plain(place)
  config = options.get("config", "")
  try:
    loaded = _load(name, config)
  except ImportError:
    raise InputError(
      f"corpus {spec!r}: needs the package datasets: pip install -e '.[hf]'"
    ) from None
  except Exception as error:  # of many kinds: no network, no such name, a config to choose
    reason = " ".join(str(error).split())[:300]
    raise InputError(f"corpus {spec!r}: datasets says: {reason}") from None
  splits = choose_splits(spec, options, list(loaded))
  rule, note = split_rule(set(splits.values()))
  fields = Fields.choose(spec, options, loaded[next(iter(splits))].column_names)
  info = next(iter(loaded.values())).info
  all_rows = sum(map(len, loaded.values()))
  each = max(1, (info.dataset_size or UNKNOWN * all_rows) // max(1, all_rows))  # bytes of a row
  step = max(1, part_size(each * all_rows) // each)
  parts: list[Part] = []
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
    digest(["hf", *fields, *listing, *glance(parts)]),
    note,
    bool(fields.summary),
  )


@functools.lru_cache(1)
def _load(name: str, config: str) -> Any:
  """All splits; the rows stay on disk."""
  import datasets

  datasets.disable_progress_bars()
  return datasets.load_dataset(name, config or None)
