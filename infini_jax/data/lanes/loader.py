"""Batches that Grain reads ahead in threads; the only file that imports Grain."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from infini_jax.data.lanes.documents import ALL, Batch, EvalLanes, Rows
from infini_jax.quiet import quiet

LOGGER = logging.getLogger("infini_jax")
READS = 3  # times that a batch is tried before the program ends


def train_batches(
  lanes: Any, start: int, stop: int, rows: Rows = ALL, prefetch: int = 4, patience: float = 0
) -> Iterator[Batch]:
  """Batches `start` to `stop` of training; no batch before `start` is read.

  Args:
    lanes: an object with the method `batch`, such as `TrainLanes`.
    start: the number of the first batch; batch k makes step k + 1.
    stop: one past the last batch.
    rows: the lanes of this host.
    prefetch: how many batches are read ahead.
    patience: seconds until another thread tries to read a batch; 0: never.

  Returns:
    An iterator of what `TrainLanes.batch` gives.

  Raises:
    TimeoutError: no thread has read a batch in time.
  """
  batch = patient(lambda k: lanes.batch(k, rows), patience, "batch")
  return _read_ahead(_Batches(batch, start, stop), prefetch)


def eval_batches(
  lanes: EvalLanes, read: Rows = ALL, prefetch: int = 4, start: int = 0, patience: float = 0
) -> Iterator[Batch]:
  """The chunks of an evaluation from `start` on, as `EvalLanes.chunk` gives them, read ahead.

  A chunk has all rows, so that every host can count every document. Only the rows of `read` have
  tokens. `patience` is that of `train_batches`.
  """
  chunk = patient(lambda i: lanes.chunk(i, read=read), patience, "chunk")
  return _read_ahead(_Batches(chunk, start, len(lanes)), prefetch)


def patient(read: Callable[[int], Batch], seconds: float, what: str) -> Callable[[int], Batch]:
  """`read` in a thread that is left behind if it hangs, as on a network file system.

  Args:
    read: gives the same for the same number at any time, in any thread.
    seconds: for each of `READS` tries; 0: `read` itself.
    what: the name of what is read, for messages.

  Raises:
    TimeoutError: by the function that is returned, after the last try.
  """
  if not seconds:
    return read

  def attempt(index: int, done: queue.SimpleQueue) -> None:
    try:
      done.put((read(index), None))
    except BaseException as error:
      done.put((None, error))

  def retried(index: int) -> Batch:
    done: queue.SimpleQueue = queue.SimpleQueue()  # an earlier try may still end
    for tries in range(1, READS + 1):
      name = f"{what} {index}, try {tries}"
      threading.Thread(target=attempt, args=(index, done), name=name, daemon=True).start()
      with contextlib.suppress(queue.Empty):
        value, error = done.get(timeout=seconds)
        if error is not None:
          raise error
        return value
      if tries < READS:
        LOGGER.warning(
          f"warning: {what} {index} was not read in {seconds:g} s; another thread tries"
        )
    raise TimeoutError(
      f"{what} {index} was not read in {READS} x {seconds:g} s (config.data.patience): does the "
      f"file system of config.data.path answer?"
    )

  return retried


class _Batches:
  """Batches that Grain can index: item i is batch `start + i`."""

  def __init__(self, batch: Callable[[int], Batch], start: int, stop: int):
    self._batch, self._start, self._size = batch, start, max(0, stop - start)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Batch:
    return self._batch(self._start + int(index))


def _read_ahead(batches: _Batches, prefetch: int) -> Iterator[Batch]:
  from absl import flags

  with quiet():
    import grain  # here, because it imports JAX, which `prepare` and its workers do not need

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which notebooks and tests do not parse
  if not len(batches):
    return
  # Few threads: making a batch is mostly Python code, and one thread runs it at a time.
  options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
  with quiet():
    yield from grain.MapDataset.source(batches).to_iter_dataset(options)
