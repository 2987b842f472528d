"""Batches that Grain reads ahead in threads; the only file that imports Grain."""

from collections.abc import Callable, Iterator
from typing import Any

from infini_jax.data.lanes.documents import ALL, Batch, EvalLanes, Rows
from infini_jax.quiet import quiet


def train_batches(
  lanes: Any, start: int, stop: int, rows: Rows = ALL, prefetch: int = 4
) -> Iterator[Batch]:
  """Batches `start` to `stop` of training; no batch before `start` is read.

  Args:
    lanes: an object with the method `batch`, such as `TrainLanes`.
    start: the number of the first batch; batch k makes step k + 1.
    stop: one past the last batch.
    rows: the lanes of this host.
    prefetch: how many batches are read ahead.

  Returns:
    An iterator of what `TrainLanes.batch` gives.
  """
  return _read_ahead(_Batches(lambda k: lanes.batch(k, rows), start, stop), prefetch)


def eval_batches(
  lanes: EvalLanes, read: Rows = ALL, prefetch: int = 4, start: int = 0
) -> Iterator[Batch]:
  """The chunks of an evaluation from `start` on, as `EvalLanes.chunk` gives them, read ahead.

  A chunk has all rows, so that every host can count every document. Only the rows of `read` have
  tokens.
  """
  return _read_ahead(_Batches(lambda i: lanes.chunk(i, read=read), start, len(lanes)), prefetch)


class _Batches:
  """Batches as a source that Grain can index: item i is batch `start + i`."""

  def __init__(self, batch: Callable[[int], Batch], start: int, stop: int):
    self._batch, self._start, self._size = batch, start, max(0, stop - start)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Batch:
    return self._batch(self._start + int(index))


def _read_ahead(source: _Batches, prefetch: int) -> Iterator[Batch]:
  from absl import flags

  with quiet():
    import grain  # here, because it imports JAX, which `prepare` and its workers do not need

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which notebooks and tests do not parse
  if not len(source):
    return
  # Few threads: making a batch is mostly Python code, and one thread runs it at a time.
  options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
  with quiet():
    yield from grain.MapDataset.source(source).to_iter_dataset(options)
