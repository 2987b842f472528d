"""Tokenizes a corpus once, in parallel, into a token store; it continues after an interruption."""

import shutil
from pathlib import Path

from rich.console import Console

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources import Corpus
from infini_jax.data.sources.specs import folder_of
from infini_jax.data.store.mixture import PREFIX, open_mixture
from infini_jax.data.store.shards import FIRST, TOTALS, Shard
from infini_jax.data.store.store import Store, is_store, write_store
from infini_jax.data.store.tables import left_out, lengths, table
from infini_jax.data.store.verify import verify
from infini_jax.data.store.work import PARTS, Preparation
from infini_jax.data.store.workers import write_shards
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.paths import expand
from infini_jax.progress import make_console


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
  work = Preparation(corpus, out, tokenizer, min_tokens, own, remedy, train)
  if work.is_complete:
    return Store.open(work.out)
  work.introduce(console)
  write_shards(
    work.todo(work.jobs), work.out, work.tokenizer, work.dtype, work.min_tokens, workers, console
  )
  return finish(work, console)


def finish(work: Preparation, console: Console) -> Store:
  """Checks a store whose jobs are all done, and completes it.

  Raises:
    InputError: a shard is missing or damaged, the corpus changed meanwhile, a process with another
      plan has written into the folder, or there are no training tokens.
  """
  work.check_plan()
  out, corpus, jobs = work.out, work.corpus, work.jobs
  every = [shard for job in jobs for shard in job.shards(out)]
  needed = {"train"} if work.train else set(SPLITS)
  totals = [dict(zip(TOTALS, shard.totals(), strict=True)) for shard in every]
  found = zip(every, totals, strict=True)
  if not any(numbers["tokens"] for shard, numbers in found if shard.folder.name in needed):
    what = "training tokens" if work.train else "tokens"
    raise InputError(f"corpus {corpus.spec!r}: no {what} (min_tokens={work.min_tokens}); add text")
  verify(out, jobs, work.tokenizer, work.dtype, work.min_tokens, console)
  description = {
    "source": corpus.spec,
    "tokenizer": work.spec,
    "tokenizer_fingerprint": work.tokenizer.fingerprint,
    "dtype": work.dtype,
    "summaries": corpus.summaries,
    "fingerprint": work.fingerprint,
  }
  first = {kind: _first(kind, every, totals) for kind in FIRST}
  counts = {split: sum(split in job.numbers for job in jobs) for split in SPLITS}
  store = write_store(out, description, counts)
  shutil.rmtree(out / PARTS, ignore_errors=True)
  for line in left_out(store, work.min_tokens, first):
    console.print(line, markup=False, soft_wrap=True)
  marks = f"bos {work.tokenizer.bos}, eos {work.tokenizer.eos}"
  console.print(f"{out} ({work.spec}), {marks}", markup=False, soft_wrap=True)
  console.print(table(store))
  console.print(lengths(store))
  return store


def _first(kind: str, shards: list[Shard], totals: list[dict[str, int]]) -> str:
  """About the first document of all shards that was left out; see `Shard.first`."""
  some = (shard for shard, numbers in zip(shards, totals, strict=True) if numbers[kind])
  return next(filter(None, (shard.first(kind) for shard in some)), "")


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
