"""Prepared data sets of TensorFlow Datasets (array_record or Parquet), read without TensorFlow.

Nothing is downloaded or generated here. A prepared data set contains its own description, so your
own data sets can be read too, and they need not be registered.
"""

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import (
  Corpus,
  CorpusPart,
  Damaged,
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
from infini_jax.data.sources.parquet import each_row, row_groups
from infini_jax.data.store.shards import each_record
from infini_jax.quiet import quiet

NAME = re.compile(r"(\w+(?:/[\w.\-]+)?)(?::(\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
FORMATS = ("array_record", "parquet")
FIELDS = {  # the fields of well-known data sets
  "pg19": Fields("book_text", "", "book_title"),
  "scientific_papers": Fields("article", "abstract"),
  "booksum": Fields("document", "summary"),
  "c4": Fields("text", "", "url"),
}


@dataclasses.dataclass(frozen=True)
class ExamplesPart(CorpusPart):
  """Some examples of a file."""

  folder: str  # the folder of the data set
  file: str
  split: str
  first: int  # the number of the file's first example in its split
  start: int
  stop: int
  fields: Fields

  def each(self) -> Iterator[Record | InputError]:
    """A document for each example, at the place `SPLIT:NUMBER`."""
    import tensorflow_datasets

    every = _builder(self.folder).info.features
    asked = {field: every[field] for field in self.fields if field}  # no picture is decoded
    features = tensorflow_datasets.features.FeaturesDict(asked)
    with _local(self.file) as path:
      for number, raw in self._raw(path):
        place = f"{self.split}:{self.first + number}"
        if isinstance(raw, InputError):
          yield raw
        else:
          yield tried(self._record, place, features, raw)

  def _record(self, place: str, features: Any, raw: bytes) -> Record:
    try:
      example = features.deserialize_example_np(raw)
    except Exception as error:  # of the protocol buffers: any class
      reason = " ".join(str(error).split())[:200]
      raise InputError(
        f"{place}: is not an example of its data set ({reason}); prepare it again"
      ) from None
    return self.fields.record(self.splits, place, example)

  def _raw(self, path: Path) -> Iterator[tuple[int, bytes | InputError]]:
    """The bytes of each example with its number in the file, or why they cannot be read."""
    try:
      if ".parquet" not in path.name:
        yield from each_record(path, self.start, self.stop)
        return
      for number, row in each_row(path, ["data"], self.start, self.stop):
        yield number, row if isinstance(row, InputError) else row["data"]
    except InputError as error:
      yield self.start, error


def open_tfds(spec: str, train: bool = True) -> Corpus:
  """The corpus `tfds:NAME[/CONFIG][:VERSION]?data_dir=DIR&text=FIELD&train=SPLIT` and so on.

  Raises:
    InputError: there is no such data set, its format needs TensorFlow, there is no such field, or a
      file is missing.
  """
  place, options = Options.split(spec, ("data_dir", *SPLITS, *Fields._fields))
  data_dir = options.get("data_dir") or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  match = NAME.fullmatch(place)
  if not match:
    raise InputError(f"corpus {spec!r}: write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3")
  try:
    builder = _builder(_find(spec, match[1], match[2], data_dir))
    return _corpus(spec, builder, options, train)
  except InputError:
    raise
  except Exception as error:  # any class: no gcsfs, no network, no right to read
    if not _is_remote(data_dir):
      raise
    reason = " ".join(str(error).split())[:200]
    raise InputError(
      f"corpus {spec!r}: {data_dir} cannot be read ({reason}); gs:// needs the package gcsfs and "
      f"the right to read, or copy the data set here"
    ) from None


def _corpus(spec: str, builder: Any, options: Options, train: bool) -> Corpus:
  """The parts of a prepared data set."""
  info = builder.info
  there_are = {name: _is_text(feature) for name, feature in info.features.items()}
  usual = FIELDS.get(info.name, Fields("text"))
  fields = Fields.choose(spec, options, list(there_are), usual)
  for field in filter(None, fields[:2]):
    if not there_are[field]:
      texts = ", ".join(name for name, text in there_are.items() if text)
      raise InputError(
        f"corpus {spec!r}: field {field!r} is not text; name one of {texts or 'none'}"
      )
  if fields.name and info.features[fields.name].shape != ():
    raise InputError(
      f"corpus {spec!r}: field {fields.name!r} is not a name; take one text or number"
    )
  splits = choose_splits(spec, options, list(info.splits), train)
  rule, note = split_rule(set(splits.values()))
  target = part_size(sum(info.splits[split].num_bytes for split in splits))
  parts: list[CorpusPart] = []
  listing = [info.full_name]
  for name, ours in splits.items():
    split = info.splits[name]
    each = max(1, split.num_bytes // max(1, split.num_examples))  # bytes for each example
    first = 0
    for file, examples in zip(split.filepaths, split.shard_lengths, strict=True):
      try:
        _check_file(spec, file, examples)
      except InputError as error:
        if not options.skips:
          raise
        parts.append(Damaged(rule[ours], 0, str(error)))
        first += examples
        continue
      step = examples if _is_remote(str(file)) else max(1, target // each)
      for start in range(0, examples, max(1, step)):
        stop = min(start + step, examples)
        where = (str(builder.data_dir), str(file), name, first, start, stop)
        parts.append(ExamplesPart(rule[ours], each * (stop - start), *where, fields))
      first += examples
    listing.append(f"{name}\0{ours}\0{split.shard_lengths}\0{split.num_bytes}")
  if not _is_remote(str(builder.data_dir)):
    listing += glance(parts, options.skips)
  fingerprint = digest(["tfds", *fields, *listing])
  summaries = bool(fields.summary)
  return Corpus(spec, gather(parts), fingerprint, note, summaries, skips=options.skips)


def _check_file(spec: str, file: Any, examples: int) -> None:
  if not file.exists():
    raise InputError(f"corpus {spec!r}: {file} is missing; copy it too, or prepare it again")
  if ".parquet" in file.name and not _is_remote(str(file)):
    rows = sum(rows for rows, _ in row_groups(Path(file)))
    if rows != examples:
      # tensorflow-datasets 4.9.10 loses some rows after the first 100 of a file.
      raise InputError(
        f"corpus {spec!r}: {file} holds {rows} of {examples} examples; prepare it again with "
        f"--file_format=array_record, because the writer of Parquet files loses rows"
      )


def _is_text(feature: Any) -> bool:
  """Whether a feature is one string for each example."""
  import numpy as np

  return feature.shape == () and feature.np_dtype == np.object_


def _find(spec: str, name: str, version: str | None, data_dir: str) -> str:
  """The folder of a prepared data set; the newest version if none is named."""
  from etils import epath

  root = epath.Path(data_dir).expanduser() / name
  versions = _prepared(root)
  if version:
    versions = {n: folder for n, folder in versions.items() if n == version}
  if versions:
    newest = max(versions, key=lambda n: [int(x) for x in n.split(".")])
    return str(versions[newest])
  configs = [p.name for p in root.iterdir() if _prepared(p)] if root.is_dir() else []
  if configs:
    choices = ", ".join(f"tfds:{name}/{config}" for config in sorted(configs))
    raise InputError(f"corpus {spec!r}: comes in several configs; choose {choices}")
  known = _known()
  if name.split("/")[0] not in known:
    close = difflib.get_close_matches(name.split("/")[0], known, 1)
    raise InputError(
      f"corpus {spec!r}: TensorFlow Datasets has no {name.split('/')[0]!r}"
      + (f" (did you mean {close[0]!r}?)" if close else "")
      + f", and {root} is not there; give its name, or the ?data_dir= that holds it"
    )
  raise InputError(
    f"corpus {spec!r}: {root} does not hold it{f' in version {version}' if version else ''}; give "
    f"the ?data_dir= that does, or prepare it where there are a network and TensorFlow: "
    f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
  )


def _prepared(root: Any) -> dict[str, Any]:
  """The versions that are prepared in a folder."""
  if not root.is_dir():
    return {}
  found = {p.name: p for p in root.iterdir() if VERSION.fullmatch(p.name)}
  return {name: p for name, p in found.items() if (p / "dataset_info.json").exists()}


def _known() -> set[str]:
  """The names of data sets that the package could prepare."""
  with quiet():
    import tensorflow_datasets
    import tensorflow_datasets.summarization
    import tensorflow_datasets.text  # these two register more data sets when imported

    return set(tensorflow_datasets.list_builders(with_community_datasets=False))


@functools.lru_cache(4)
def _builder(folder: str) -> Any:
  """The builder of a prepared data set, from its own description.

  Raises:
    InputError: the data set is in another format, such as TFRecord, or its description cannot be
      read.
  """
  try:
    with quiet():
      import tensorflow_datasets

      builder = tensorflow_datasets.builder_from_directory(folder)
      formats = {f.value for f in builder.info.available_file_formats()}
      readable = next((f for f in FORMATS if f in formats), None)
      if readable and builder.info.file_format.value != readable:
        builder.info.set_file_format(readable, override=True, override_if_initialized=True)
  except (ValueError, KeyError, AttributeError) as error:
    reason = " ".join(str(error).split())[:200]
    raise InputError(
      f"{folder}: no description of a data set ({reason}); prepare it again"
    ) from None
  if not readable:
    raise InputError(
      f"{folder}: is prepared as {', '.join(sorted(formats)) or 'nothing'}, which only TensorFlow "
      f"reads; where it is installed, run: tfds convert_format --dataset_version_dir={folder} "
      f"--out_file_format=array_record"
    )
  return builder


def _is_remote(file: str) -> bool:
  return "://" in file


@contextlib.contextmanager
def _local(file: str) -> Iterator[Path]:
  """The path of a file; for a remote file, of a temporary copy."""
  if not _is_remote(file):
    yield Path(file)
    return
  from etils import epath

  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder, file.rpartition("/")[2])
    with epath.Path(file).open("rb") as source, open(copy, "wb") as target:
      shutil.copyfileobj(source, target, 1 << 22)
    yield copy
