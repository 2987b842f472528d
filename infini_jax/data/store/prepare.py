"""Tokenizes a corpus once, in parallel, into a token store; it continues after an interruption."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources import Corpus, open_corpus
from infini_jax.data.sources.base import MB, digest
from infini_jax.data.sources.specs import folder_of
from infini_jax.data.store.mixture import PREFIX, open_mixture
from infini_jax.data.store.shards import FIRST
from infini_jax.data.store.store import FORMAT, READABLE, Store, is_store, write_json, write_store
from infini_jax.data.store.verify import verify
from infini_jax.data.store.workers import Job, write_shards
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
from infini_jax.progress import make_console

SAMPLE = 10 * MB  # characters that a tokenizer is trained on


def prepare(
  corpus: str | Corpus,
  out: Path,
  tokenizer: str,
  workers: int | None = None,
  min_tokens: int = 1,
  console: Console | None = None,
  own: Tokenizer | None = None,
  remedy: str = "choose another --out",
  train: bool = True,
) -> Store:
  """Tokenizes a corpus into a store. It opens a complete store, and finishes an incomplete one.

  Args:
    corpus: a spec for `open_corpus`, or an open corpus.
    out: the folder of the store.
    tokenizer: bytes, train:SIZE, sentencepiece:FILE, huggingface:FILE or run.
    workers: the number of processes; by default one for each core. The store does not depend on it.
    min_tokens: documents with fewer tokens are dropped; empty documents are always dropped.
    console: for progress and the final table.
    own: the tokenizer of the run, for the spec `run`.
    remedy: the remedy in an error about an `out` that holds something else.
    train: whether the store must have training tokens.

  Raises:
    InputError: a wrong corpus or tokenizer; `out` holds something else, or a process with another
      plan writes into it at the same time; there are no training tokens.
  """
  console = console or make_console()
  out = local(out)
  corpus = open_corpus(expand(corpus), train) if isinstance(corpus, str) else corpus
  given = _given(tokenizer, own)
  plan = _plan(corpus, given.fingerprint if given else tokenizer, min_tokens)
  _claim(out, plan, remedy)
  if (out / "store.json").exists():
    return Store.open(out)
  for line in filter(None, (corpus.note, corpus.left_out)):
    console.print(line, markup=False, soft_wrap=True)
  ready = _tokenizer(out, tokenizer, corpus, given)
  dtype = "<u2" if ready.size <= 2**16 else "<u4"
  jobs = _jobs(corpus)
  todo = [job for job in jobs if not all(shard.is_finished() for shard in job.shards(out))]
  write_shards(todo, out, ready, dtype, min_tokens, workers, console)
  if read_plan(out) != plan:
    raise InputError(
      f"{out}: another process with other settings has written into it at the same time; delete "
      f"it, and {remedy} for one of them"
    )
  needed = {"train"} if train else set(SPLITS)
  shards = (shard for job in jobs for shard in job.shards(out) if shard.folder.name in needed)
  if not any(shard.totals()[1] for shard in shards):
    what = "training tokens" if train else "tokens"
    raise InputError(f"corpus {corpus.spec!r}: no {what} (min_tokens={min_tokens}); add text")
  verify(out, jobs, ready, dtype, min_tokens, console)
  description = {
    "source": corpus.spec,
    "tokenizer": tokenizer,
    "tokenizer_fingerprint": ready.fingerprint,
    "dtype": dtype,
    "summaries": corpus.summaries,
    "fingerprint": _fingerprint(plan, ready),
  }
  every = [shard for job in jobs for shard in job.shards(out)]
  first = {kind: next(filter(None, (shard.first(kind) for shard in every)), "") for kind in FIRST}
  counts = {split: sum(split in job.numbers for job in jobs) for split in SPLITS}
  store = write_store(out, description, counts)
  for line in _left_out(store, min_tokens, first):
    console.print(line, markup=False, soft_wrap=True)
  marks = f"bos {ready.bos}, eos {ready.eos}"
  console.print(f"{out} ({tokenizer}), {marks}", markup=False, soft_wrap=True)
  console.print(table(store))
  console.print(lengths(store))
  return store


def open_or_prepare(
  path: str,
  tokenizer: str,
  cache: Path,
  console: Console | None = None,
  own: Tokenizer | None = None,
) -> Store:
  """Opens the store or the mixture at `path`, or prepares the corpus at `path` into `cache`.

  With `own`, the tokenizer of the run, the spec of a store's tokenizer is not compared: the caller
  compares the two tokenizers. If `tokenizer` is `run`, a corpus is prepared with `own`.

  Raises:
    InputError: as `prepare` and `open_mixture`; or the store at `path` has another tokenizer.
  """
  if path.startswith(PREFIX):
    return open_mixture(path, None if own else tokenizer)
  path = expand(path)
  if not path or not is_store(folder_of(path)):
    remedy = "choose another --workdir, or set config.data.path back"
    return prepare(path, cache, tokenizer, console=console, own=own, remedy=remedy)
  store = Store.open(folder_of(path))
  if own is None and store.spec != tokenizer:
    raise InputError(
      f"store {path!r} was made with the tokenizer {store.spec!r}, not {tokenizer!r}: "
      f"set config.data.tokenizer={store.spec!r}"
    )
  return store


def open_prepared(path: str, cache: Path) -> Store:
  """Opens the tokens of a run without its corpus: the mixture or store at `path`, else `cache`.

  Raises:
    InputError: as `open_mixture` and `Store.open`.
  """
  if path.startswith(PREFIX):
    return open_mixture(path)
  path = expand(path)
  return Store.open(folder_of(path) if path and is_store(folder_of(path)) else cache)


def table(store: Store) -> Table:
  """A table of the content of a store, split by split."""
  result = Table()
  result.add_column("split")
  for column in ("documents", "tokens", "bytes", "bytes per token", "characters per token"):
    result.add_column(column, justify="right")
  for split, totals in store.splits.items():
    numbers = [f"{totals[name]:,}" for name in ("documents", "tokens", "bytes")]
    each = [totals[name] / max(1, totals["tokens"]) for name in ("bytes", "characters")]
    result.add_row(split, *numbers, *(f"{value:.2f}" for value in each))
  return result


def lengths(store: Store) -> Table:
  """A table of the number of documents by length, in buckets that double."""
  counts = {split: _histogram(store, split) for split in SPLITS}
  filled = np.flatnonzero(sum(counts.values()))
  result = Table()
  result.add_column("tokens of a document", justify="right")
  for split in SPLITS:
    result.add_column(split, justify="right")
  for bucket in range(filled.min(), filled.max() + 1):
    rows = [f"{counts[split][bucket]:,}" for split in SPLITS]
    result.add_row(f"{2**bucket:,} to {2 ** (bucket + 1) - 1:,}", *rows)
  return result


def _histogram(store: Store, split: str) -> np.ndarray:
  """Item i: the number of documents with 2**i to 2**(i+1) - 1 tokens; int64, shape (64,)."""
  total = np.zeros(64, np.int64)
  for shard in store.shards(split):
    tokens = shard.counts()[0]
    total += np.bincount(np.frexp(tokens)[1] - 1, minlength=64)  # exact below 2**53
  return total


def _left_out(store: Store, min_tokens: int, first: dict[str, str]) -> Iterator[str]:
  """Lines about dropped documents, and about empty splits.

  Args:
    store: the store that was written.
    min_tokens: shorter documents were dropped.
    first: about the first document of each kind of `FIRST`.
  """
  empty, short, bad = (
    sum(totals[kind] for totals in store.splits.values()) for kind in ("empty", "short", "bad")
  )
  if bad:
    yield f"left out: {bad:,} documents that cannot be read, the first: {first['bad']}"
  if empty:
    name = first["empty"]
    shown = name if name.isprintable() else repr(name)
    yield f"left out: {empty:,} empty documents, such as {shown}; if they are not, name their field"
  if short:
    yield f"left out: {short:,} documents of fewer than {min_tokens:,} tokens"
  for split in (split for split, totals in store.splits.items() if not totals["documents"]):
    yield f"{split}: has no documents; to have some, add text or name files {split}"


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


def _fingerprint(plan: dict[str, Any], tokenizer: Tokenizer) -> str:
  """The fingerprint of documents and tokens. Runs store it, so a new format must not change it."""
  return digest([*map(str, (plan | {"format": 1}).values()), tokenizer.fingerprint])


def _claim(out: Path, plan: dict[str, Any], remedy: str) -> None:
  """Marks `out` as the store of this plan, or checks that it is."""
  if os.fsencode(out).decode("utf-8", "replace") != str(out):
    raise InputError(f"{out}: the bytes of this name are not UTF-8; {remedy}")
  if out.is_dir() and is_store(out):
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
    return write_json(out / "plan.json", plan)
  # Temporary files do not count: another host may be writing the same plan now.
  if out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
    raise InputError(f"{out}: is not empty and not a store; {remedy}")
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "plan.json", plan)


def read_plan(out: Path) -> dict[str, Any]:
  """What a store is made from, from its plan.json; {} if this file cannot be read."""
  try:
    return json.loads((out / "plan.json").read_text("utf-8"))
  except (OSError, ValueError):
    return {}


def _tokenizer(out: Path, spec: str, corpus: Corpus, given: Tokenizer | None) -> Tokenizer:
  """The tokenizer, saved in `out`. A trained tokenizer stays the same after an interruption."""
  if given is not None:
    given.save(out)
    return given
  if not (out / SentencePieceTokenizer.file).exists():
    size = train_size(spec) or 0
    train_sentencepiece(corpus.sample(SAMPLE), size, out / SentencePieceTokenizer.file)
  return load_saved(out)


def _jobs(corpus: Corpus) -> list[Job]:
  """A job for every part, with the numbers of its shards; independent of the workers."""
  numbers = {split: itertools.count() for split in SPLITS}
  return [
    Job(
      part, {split: next(numbers[split]) for split in part.splits}, corpus.summaries, corpus.skips
    )
    for part in corpus.parts
  ]
