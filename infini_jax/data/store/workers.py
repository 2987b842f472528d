"""Tokenizes and writes shards in several processes, with progress."""

import contextlib
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.sources import CorpusPart, Record
from infini_jax.data.sources.base import MB
from infini_jax.data.store.shards import Entry, Shard, ShardWriter, summaries_of
from infini_jax.data.tokenizers import Tokenizer, count_words, encode_document, load_saved
from infini_jax.progress import track

PATIENCE = 600.0  # seconds without a finished corpus part after which a line says so
SPAWN_ABOVE = 4 * MB  # a smaller corpus takes less time than starting processes


class Job(NamedTuple):
  """The work on one corpus part: it is written to one shard of each of its splits."""

  part: CorpusPart
  numbers: dict[str, int]  # the number of the shard, by split
  summaries: bool  # whether to write summaries, into shards of their own
  skips: bool = False  # whether a document that cannot be read is left out and counted

  def shards(self, out: Path) -> list[Shard]:
    """All shards that the job writes."""
    splits = [out / split for split in self.numbers]
    folders = splits + [summaries_of(split) for split in splits if self.summaries]
    return [Shard(folder, self.numbers[folder.stem]) for folder in folders]


def write_shards(
  jobs: list[Job],
  out: Path,
  tokenizer: Tokenizer,
  dtype: str,
  min_tokens: int,
  workers: int | None,
  console: Console,
) -> None:
  """Tokenizes and writes shards, in several processes if the corpus is large enough.

  Args:
    jobs: the jobs, in any order.
    out: the folder of the store, which holds the tokenizer already.
    tokenizer: the same tokenizer, loaded.
    dtype: the type of the ids on disk.
    min_tokens: shorter documents are dropped.
    workers: the most processes; None: one for each core.
    console: for progress.

  Raises:
    InputError: a document is not text or cannot be encoded, or a worker was killed.
  """
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  total = sum(job.part.size for job in jobs)
  if workers < 2 or total < SPAWN_ABOVE:
    done = (write_job(job, out, tokenizer, dtype, min_tokens) for job in jobs)
    return _follow(done, total, console)
  # spawn, not fork: JAX may already run threads in this process, which a fork would break.
  spawn = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(workers, spawn, _start_worker, (out,)) as pool:
    work = [pool.submit(_work, job, out, dtype, min_tokens) for job in jobs]
    try:
      say = lambda line: console.print(line, soft_wrap=True, highlight=False)
      _follow(finished(work, PATIENCE, say), total, console)
    except BrokenProcessPool:
      raise InputError(
        f"{out}: a worker was killed (short of memory?); run the same again with fewer --workers, "
        f"it continues where it stopped"
      ) from None
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def finished(work: Iterable[Future], patience: float, say: Callable[[str], None]) -> Iterator[int]:
  """Yields the results of jobs as they are finished.

  A worker may read from a file system that does not answer. It is not ended, because a part of the
  corpus may also take long: one document of a hundred million characters does.

  Args:
    work: the jobs.
    patience: seconds without a finished job after which `say` gets a line, again and again.
    say: takes a line.
  """
  left, since = set(work), time.monotonic()
  while left:
    done, left = wait(left, timeout=patience, return_when=FIRST_COMPLETED)
    if done:
      since = time.monotonic()
    else:
      say(
        f"warning: no corpus part was finished in {time.monotonic() - since:,.0f} s, parts "
        f"left: {len(left)}; does its file system answer? If you end this command, the same one "
        f"continues"
      )
    for future in done:
      yield future.result()


def _follow(done: Iterable[int], total: int, console: Console) -> None:
  """Shows progress; `done` yields the size of each finished corpus part."""
  with track(console, "tokenizing", total, in_bytes=True) as advance:
    for finished in itertools.accumulate(done):
      advance(finished)


def write_job(job: Job, out: Path, tokenizer: Tokenizer, dtype: str, min_tokens: int) -> int:
  """Runs a job in this process, and returns the size of its part.

  Args:
    job: the job. Two processes may run it at the same time: they write the same files.
    out: the folder of the store.
    tokenizer: the tokenizer of the store.
    dtype: the type of the ids on disk.
    min_tokens: shorter documents are dropped.

  Raises:
    InputError: a document is not text or cannot be encoded. The job leaves no shard then.
  """
  with contextlib.ExitStack() as unfinished:
    writers = {
      shard.folder.name: unfinished.enter_context(ShardWriter(shard, dtype))
      for shard in job.shards(out)
    }
    for record in job.part.each():
      entries = _entries(record, tokenizer)
      if isinstance(entries, InputError):
        if not job.skips:
          raise entries
        split = job.part.splits[0] if isinstance(record, InputError) else record.split
        writers[split].leave_out("bad", str(entries))
        continue
      assert not isinstance(record, InputError)
      text, summary = entries
      if len(text.ids) < max(1, min_tokens):
        writers[record.split].leave_out("short" if len(text.ids) else "empty", record.name)
        continue
      writers[record.split].add(text)
      if job.summaries:
        writers[summaries_of(Path(record.split)).name].add(summary)
    for writer in writers.values():
      writer.close()
  return job.part.size


def _entries(record: Record | InputError, tokenizer: Tokenizer) -> tuple[Entry, Entry] | InputError:
  """What is stored of a document and of its summary; an error if it cannot be read or encoded."""
  if isinstance(record, InputError):
    return record
  _, name, text, summary = record
  try:
    return _entry(name, text, tokenizer), _entry(name, summary, tokenizer)
  except InputError as error:
    return error


def _entry(name: str, text: str, tokenizer: Tokenizer) -> Entry:
  ids = encode_document(tokenizer, text, name)
  return Entry(name, ids, len(text.encode()), count_words(text), len(text))


_worker_tokenizer: Tokenizer  # loaded once in each worker process


def _start_worker(out: Path) -> None:
  global _worker_tokenizer
  _worker_tokenizer = load_saved(out)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends a worker when its parent has ended; a killed parent cannot stop its workers itself."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _work(job: Job, out: Path, dtype: str, min_tokens: int) -> int:
  return write_job(job, out, _worker_tokenizer, dtype, min_tokens)
