"""Published long-context tasks in their own form: the rows of RULER's generator and of BABILong.

Nothing of their texts is in this package. Rows are read from the user's files, one at a time, or
from data sets of the package `datasets`. Their tasks and lengths are in the names of folders,
files, configs or splits, as they are published:

    4096/data/niah_single_1/validation.jsonl        RULER: length and task
    data/qa1/4k.json, or config 4k and split qa1    BABILong
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infini_jax.config import InputError
from infini_jax.data.sources import huggingface, jsonl, parquet
from infini_jax.data.sources.base import Options
from infini_jax.data.sources.files import File, find_files
from infini_jax.paths import local

KINDS = ("jsonl", "parquet", "hf")
OPTIONS = ("config", "prompt", "tokens")
SUFFIXES = {"jsonl": (*jsonl.SUFFIXES, ".json"), "parquet": (".parquet",)}
# Words of a path that name neither a task nor a length.
COMMON = {"validation", "test", "train", "dev", "val", "data", "synthetic", "default", ""}
BUCKETS = tuple(4096 << i for i in range(9))  # of RULER: 4K to 1M
LENGTH = re.compile(r"(\d+)([kKmM]?)")


class Sample(NamedTuple):
  """One example.

  Attributes:
    task: its task, such as niah_single_1 or qa1.
    length: the length under which it is published, in tokens.
    place: where it is, for errors and tables.
    text: what is read, up to the answer.
    question: what is asked, where a row says it apart; else empty.
    targets: the right answers, or the parts of it.
  """

  task: str
  length: int
  place: str
  text: str
  question: str
  targets: tuple[str, ...]


class Form(NamedTuple):
  """The form of the rows of a benchmark.

  Attributes:
    name: its name.
    fields: those that a row must have.
    optional: those that it may have.
    sample: from a row, its place and the words of its path to a sample.
  """

  name: str
  fields: tuple[str, ...]
  optional: tuple[str, ...]
  sample: Callable[[Mapping[str, Any], str, Sequence[str], str], Sample]


class RowSet(NamedTuple):
  """Rows that can be read again: their names as words, the last one first."""

  words: tuple[str, ...]
  rows: Callable[[], Iterator[tuple[str, dict[str, Any]]]]


class Published:
  """The samples of a benchmark in the order of their files, each read when it is needed.

  All of them are read once, and checked.

  Args:
    spec: jsonl:FILES, parquet:FILES or hf:NAME, with options: `config` (of a data set), `prompt` (a
      file with {input} and {question}) and `tokens` (the most to write).
    form: of the rows.
    prompt: the usual one.
    limit: the most samples of a task and length; 0: all.

  Attributes:
    runs: consecutive samples of a task and length, and their number.
    text: a short hash of all samples.
    tokens: the most tokens to write; 0: as the benchmark says.

  Raises:
    InputError: there are no such files, or a row is of another form.
  """

  def __init__(self, spec: str, form: Form, prompt: str, limit: int = 0):
    kind, _, _ = spec.partition(":")
    if kind not in KINDS:
      raise InputError(
        f"config.data.path={spec!r}: the rows of {form.name} are read from jsonl:FILES, "
        f"parquet:FILES or hf:NAME (docs/published.md); name them so"
      )
    files, options = Options.split(spec, OPTIONS)
    self.path, self.form, self._limit = spec, form, limit
    self._prompt = _prompt(spec, options["prompt"]) if "prompt" in options else prompt
    tokens = options.get("tokens", "0")
    if not tokens.isdecimal():
      raise InputError(f"corpus {spec!r}: ?tokens={tokens}: give a number of tokens")
    self.tokens = int(tokens)
    self._row_sets = _row_sets(spec, kind, files, options, form)
    hashed = hashlib.blake2b(digest_size=8)
    self.runs: list[tuple[str, int, int]] = []
    for sample in self.samples():
      hashed.update(repr(sample).encode("utf-8", "surrogatepass"))
      cell = sample.task, sample.length
      if self.runs and self.runs[-1][:2] == cell:
        self.runs[-1] = (*cell, self.runs[-1][2] + 1)
      else:
        self.runs.append((*cell, 1))
    if not self.runs:
      raise InputError(f"corpus {spec!r}: has no rows; give others")
    self.text = hashed.hexdigest()

  def samples(self) -> Iterator[Sample]:
    """All samples, up to the limit of each task and length.

    Raises:
      InputError: a row is of another form, or cannot be read.
    """
    counts: dict[tuple[str, int], int] = {}
    for found in self._row_sets:
      for where, row in found.rows():
        _check(self.form, where, row)
        sample = self.form.sample(row, where, found.words, self._prompt)
        cell = sample.task, sample.length
        counts[cell] = counts.get(cell, 0) + 1
        if not self._limit or counts[cell] <= self._limit:
          yield sample


def ruler(row: Mapping[str, Any], where: str, words: Sequence[str], prompt: str) -> Sample:
  """A row that RULER's generator writes. Its prompt is whole; some versions keep its end apart."""
  begin = str(row.get("answer_prefix") or "")
  text = row["input"] + ("" if row["input"].endswith(begin) else begin)
  outputs = [row["outputs"]] if isinstance(row["outputs"], str) else row["outputs"]
  if not all(isinstance(output, str | int | float) for output in outputs):
    raise InputError(
      f"{where}: its outputs are not a list of texts; complete the row, or remove it"
    )
  targets = tuple(map(str, outputs))
  if not targets or not all(target.strip() for target in targets):
    raise InputError(f"{where}: its outputs are empty; take the row out")
  task, length = named(words)
  if length is None:
    own = _length(row.get("length"), where)
    length = next((bucket for bucket in BUCKETS if own <= bucket), own)
  return Sample(str(row.get("task") or task), length, where, text, "", targets)


def babilong(row: Mapping[str, Any], where: str, words: Sequence[str], prompt: str) -> Sample:
  """A row of BABILong: a text, a question, and its answer."""
  task, length = named(words)
  if not re.fullmatch(r"qa([1-9]|1\d|20)", task) or length is None:
    raise InputError(
      f"{where}: no task and length in its path; BABILong has them as qa1 ... qa20 and 0k, 1k, ... "
      f"in the names of folders, files, configs or splits"
    )
  for field in ("question", "target"):
    if not row[field].strip():
      raise InputError(f"{where}: its {field} is empty; take the row out")
  parts = {f"{{{field}}}": row[field].strip() for field in ("input", "question")}
  text = re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], prompt)
  return Sample(task, length, where, text, row["question"], (row["target"].strip(),))


RULER = Form("RULER", ("input", "outputs"), ("length", "task", "answer_prefix"), ruler)
BABILONG = Form("BABILong", ("input", "question", "target"), (), babilong)


def named(words: Sequence[str]) -> tuple[str, int | None]:
  """The task and the length that a path names; the last word comes first.

  A length is a power of two from 1,024 on, or has a unit: 4k is 4,096.
  """
  length, task = None, ""
  for word in words:
    found = LENGTH.fullmatch(word)
    if found and (found[2] or (int(found[1]) >= 1024 and int(found[1]).bit_count() == 1)):
      size = int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()]
      length = size if length is None else length
    elif not task and word.lower() not in COMMON:
      task = word
  return task, length


def _length(value: Any, where: str) -> int:
  """The length that a row says, in tokens."""
  try:
    if (length := int(value)) > 0:
      return length
  except (TypeError, ValueError, OverflowError):
    pass
  raise InputError(
    f"{where}: no length in its path, and its field 'length' is {value!r:.60}; put the file into a "
    f"folder that is named by the length, such as 4096"
  )


def _check(form: Form, where: str, row: Mapping[str, Any]) -> None:
  for field in form.fields:
    value = row.get(field)
    good = isinstance(value, list | str) if field == "outputs" else isinstance(value, str)
    if not good:
      why = "has no field" if value is None else f"has {type(value).__name__} in the field"
      raise InputError(
        f"{where}: {why} {field!r}; a row of {form.name} has {', '.join(form.fields)} "
        f"(there: {', '.join(row) or 'none'})"
      )
  if not row["input"].strip():
    raise InputError(f"{where}: its input is empty; take the row out")


def _row_sets(spec: str, kind: str, written: str, options: Options, form: Form) -> list[RowSet]:
  if kind == "hf":
    found = huggingface.each_split(spec, written, options.get("config", ""))
    fields = (*form.fields, *form.optional)
    return [
      RowSet((split, config), functools.partial(rows, fields)) for config, split, rows in found
    ]
  files, _, _ = find_files(spec, written, SUFFIXES[kind], train=False)
  return [RowSet(_words(file.path), _rows(kind, file, form)) for file in files]


def _rows(kind: str, file: File, form: Form) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
  if kind == "parquet":
    return lambda: parquet.named_rows(file, (*form.fields, *form.optional))
  return lambda: jsonl.named_rows(file)


def _words(file: Path) -> tuple[str, ...]:
  return (file.name.split(".")[0], *reversed(file.absolute().parent.parts))


def _prompt(spec: str, name: str) -> str:
  try:
    text = local(name, "prompt").read_text("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"corpus {spec!r}: ?prompt={name}: cannot be read ({error})") from None
  for part in ("{input}", "{question}"):
    if part not in text:
      raise InputError(f"corpus {spec!r}: ?prompt={name}: does not hold {part}; add it")
  return text.removesuffix("\n")
