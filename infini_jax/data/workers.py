"""Shards tokenized and written by several processes, with progress."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from infini_jax.config import InputError
from infini_jax.data.sources import Document, read_text
from infini_jax.data.store import Entry, write_shard
from infini_jax.data.tokenizers import Tokenizer, load_saved

MB = 1_000_000
SPAWN_ABOVE = 4 * MB  # a corpus below this is done before other processes have started


class Shard(NamedTuple):
  """One piece of work: documents of a split that go into one file."""

  split: str
  number: int
  documents: list[Document]
  size: int  # bytes of its files


def write_shards(
  shards: list[Shard],
  out: Path,
  tokenizer: Tokenizer,
  dtype: str,
  min_tokens: int,
  workers: int | None,
  console: Console,
) -> None:
  """Tokenizes and writes shards, in processes where there is work enough for them.

  Args:
    shards: what to do, in any order.
    out: the store; it holds the tokenizer already.
    tokenizer: the same, loaded.
    dtype: of the ids on disk.
    min_tokens: shorter documents are dropped.
    workers: processes at most; None for as many as there are cores.
    console: where progress goes.

  Raises:
    InputError: a document that is not text, or a worker that was killed.
  """
  workers = min(workers or os.cpu_count() or 1, len(shards))
  if workers < 2 or sum(shard.size for shard in shards) < SPAWN_ABOVE:
    done = (_write_shard(shard, out, tokenizer, dtype, min_tokens) for shard in shards)
    return _follow(done, shards, console)
  # spawn: JAX may already run threads in this process, which a fork would break.
  spawn = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(workers, spawn, _start_worker, (out,)) as pool:
    work = [pool.submit(_work, shard, out, dtype, min_tokens) for shard in shards]
    try:
      _follow((future.result() for future in as_completed(work)), shards, console)
    except BrokenProcessPool:
      raise InputError(
        f"{out}: a worker was killed (short of memory?); run the same again with fewer --workers, "
        f"it goes on where it stopped"
      ) from None
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _follow(done: Iterable[int], shards: list[Shard], console: Console) -> None:
  """Shows progress while sizes of finished shards come in; without a terminal, a line at times."""
  total = sum(shard.size for shard in shards)
  columns = (TextColumn("tokenizing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
  started = said = time.monotonic()
  finished = 0
  with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
    task = progress.add_task("", total=total)
    for size in done:
      finished += size
      progress.advance(task, size)
      now = time.monotonic()
      if not console.is_terminal and now - said > 10:
        said, left = now, (now - started) * (total - finished) / max(1, finished)
        console.print(f"tokenizing: {finished / MB:.0f} of {total / MB:.0f} MB, {left:.0f} s to go")


def _write_shard(shard: Shard, out: Path, tokenizer: Tokenizer, dtype: str, min_tokens: int) -> int:
  entries = _entries(shard.documents, tokenizer, min_tokens)
  write_shard(out / shard.split, shard.number, entries, dtype)
  return shard.size


def _entries(documents: list[Document], tokenizer: Tokenizer, min_tokens: int) -> Iterator[Entry]:
  for document in documents:
    text = read_text(document)
    ids = tokenizer.encode(text)
    if len(ids) >= max(1, min_tokens):
      yield Entry(document.name, ids, len(text.encode()), len(text.split()))


_worker_tokenizer: Tokenizer  # of a worker process, loaded once


def _start_worker(out: Path) -> None:
  global _worker_tokenizer
  _worker_tokenizer = load_saved(out)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A parent that is killed cannot tell its workers, which would wait for work for ever."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _work(shard: Shard, out: Path, dtype: str, min_tokens: int) -> int:
  return _write_shard(shard, out, _worker_tokenizer, dtype, min_tokens)
