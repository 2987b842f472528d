"""What a store is made from: its plan, its tokenizer and its jobs, in a folder that is claimed."""

import functools
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources import Corpus, open_corpus
from infini_jax.data.sources.base import MB, digest
from infini_jax.data.store.store import FORMAT, READABLE, is_store, write_json
from infini_jax.data.store.workers import Job
from infini_jax.data.tokenizers import (
  OWN,
  SentencePieceTokenizer,
  Tokenizer,
  load_saved,
  load_tokenizer,
  train_sentencepiece,
  train_size,
)
from infini_jax.files import is_temporary
from infini_jax.paths import expand, local

SAMPLE = 10 * MB  # characters that a tokenizer is trained on
PARTS = "parts"  # the folder with one file for each part that a machine has completed


class Preparation:
  """A store that is made from a corpus. Creating it claims the folder for its plan.

  Args:
    corpus: a spec for `open_corpus`, or an open corpus.
    out: the folder of the store.
    spec: the spec of the tokenizer, as in `prepare`.
    min_tokens: documents with fewer tokens are left out.
    own: the tokenizer of the run, for the spec `run`.
    remedy: the remedy in an error about an `out` that holds something else.
    train: whether the store must have training tokens.

  Attributes:
    plan: what the store is made from, as plan.json has it.

  Raises:
    InputError: a wrong corpus or tokenizer, or `out` holds something else.
  """

  def __init__(
    self,
    corpus: str | Corpus,
    out: Path,
    spec: str,
    min_tokens: int = 1,
    own: Tokenizer | None = None,
    remedy: str = "choose another --out",
    train: bool = True,
  ):
    self.out, self.spec, self.remedy, self.train = local(out), spec, remedy, train
    self.corpus = open_corpus(expand(corpus), train) if isinstance(corpus, str) else corpus
    self._given = _given(spec, own)
    made_by = self._given.fingerprint if self._given else spec
    self.plan = _plan(self.corpus, made_by, min_tokens)
    self.min_tokens: int = self.plan["min_tokens"]
    _claim(self.out, self.plan, remedy)

  @property
  def is_complete(self) -> bool:
    """Whether the store is complete."""
    return (self.out / "store.json").exists()

  @property
  def is_untrained(self) -> bool:
    """Whether the vocabulary must be trained before any document is encoded."""
    return self._given is None and not (self.out / SentencePieceTokenizer.file).exists()

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer, saved in `out`. A trained tokenizer stays the same after an interruption."""
    if self._given is not None:
      self._given.save(self.out)
      return self._given
    if self.is_untrained:
      size = train_size(self.spec) or 0
      sample = self.corpus.sample(SAMPLE)
      train_sentencepiece(sample, size, self.out / SentencePieceTokenizer.file)
    return load_saved(self.out)

  @property
  def dtype(self) -> str:
    """The type of the ids on disk."""
    return "<u2" if self.tokenizer.size <= 2**16 else "<u4"

  @property
  def fingerprint(self) -> str:
    """Of documents and tokens. Runs store it, so a new format must not change it."""
    values = (self.plan | {"format": 1}).values()
    return digest([*map(str, values), self.tokenizer.fingerprint])

  @functools.cached_property
  def jobs(self) -> list[Job]:
    """A job for every corpus part, with the numbers of its shards: always the same."""
    numbers = {split: itertools.count() for split in SPLITS}
    corpus = self.corpus
    return [
      Job(
        part, {split: next(numbers[split]) for split in part.splits}, corpus.summaries, corpus.skips
      )
      for part in corpus.parts
    ]

  def todo(self, jobs: list[Job]) -> list[Job]:
    """The jobs whose shards are not all finished."""
    return [job for job in jobs if not all(s.is_finished() for s in job.shards(self.out))]

  def introduce(self, console: Console) -> None:
    """Prints the notes of the corpus, such as the files that were left out."""
    for line in filter(None, (self.corpus.note, self.corpus.left_out)):
      console.print(line, markup=False, soft_wrap=True)

  def check_plan(self) -> None:
    """Raises InputError if a process with another plan has claimed the folder since."""
    if read_plan(self.out) != self.plan:
      raise InputError(
        f"{self.out}: another process with other settings has written into it at the same time; "
        f"delete it, and {self.remedy} for one of them"
      )


def _given(spec: str, own: Tokenizer | None) -> Tokenizer | None:
  """The tokenizer of a spec; None if it must be trained first."""
  if spec == OWN and own is not None:
    return own
  return load_tokenizer(spec) if train_size(spec) is None else None


def _plan(corpus: Corpus, tokenizer: str, min_tokens: int) -> dict[str, Any]:
  """What a store is made from. The path of the corpus is not part of it: a corpus may be moved."""
  return {
    "format": FORMAT,
    "documents": corpus.fingerprint,
    "tokenizer": tokenizer,
    "min_tokens": max(1, min_tokens),
  }


def _claim(out: Path, plan: dict[str, Any], remedy: str) -> None:
  """Marks `out` as the store of this plan, or checks that it is."""
  if os.fsencode(out).decode("utf-8", "replace") != str(out):
    raise InputError(f"{out}: the bytes of this name are not UTF-8; {remedy}")
  # In this order: a machine that claims the folder at the same time begins with plan.json. Its
  # temporary file does not count.
  is_used = out.exists() and not (out.is_dir() and all(map(is_temporary, out.iterdir())))
  if not is_store(out):
    if is_used:
      raise InputError(f"{out}: is not empty and not a store; {remedy}")
    out.mkdir(parents=True, exist_ok=True)
    return write_json(out / "plan.json", plan)
  found = read_plan(out)
  if (out / "store.json").exists() and found.get("format") in READABLE:
    found["format"] = FORMAT  # the format of a complete store makes no difference
  differing = next((name for name in plan if found.get(name) != plan[name]), None)
  if differing is None:
    return
  if any(out.glob("*/*.npz")) or (out / "store.json").exists():
    raise InputError(
      f"{out}: a store made with other {differing} ({found.get(differing)} there, "
      f"{plan[differing]} here); {remedy}, or delete this one"
    )
  for file in out.glob("tokenizer.*"):  # from an attempt that wrote no tokens
    file.unlink()
  shutil.rmtree(out / PARTS, ignore_errors=True)
  write_json(out / "plan.json", plan)


def read_plan(out: Path) -> dict[str, Any]:
  """What a store is made from, from its plan.json; {} if this file cannot be read."""
  try:
    return json.loads((out / "plan.json").read_text("utf-8"))
  except (OSError, ValueError):
    return {}
