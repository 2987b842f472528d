"""Batches read ahead in threads, by Grain: the one file that knows it."""

from collections.abc import Callable, Iterator
from typing import Any

from infini_jax.data.lanes.documents import ALL, Batch, EvalLanes, Rows
from infini_jax.quiet import quiet


def train_batches(
  lanes: Any, start: int, stop: int, rows: Rows = ALL, prefetch: int = 4
) -> Iterator[Batch]:
  """Batches `start` to `stop` of training; none before `start` is read.

  Args:
    lanes: the order.
    start: the step to start from: batch k makes step k + 1.
    stop: one past the last batch.
    rows: the lanes of this host.
    prefetch: batches read ahead.

  Returns:
    An iterator of what `TrainLanes.batch` gives.
  """
  return _read_ahead(_Batches(lambda k: lanes.batch(k, rows), start, stop), prefetch)


def eval_batches(
  lanes: EvalLanes, read: Rows = ALL, prefetch: int = 4, start: int = 0
) -> Iterator[Batch]:
  """The chunks of an evaluation from `start` on, read ahead: what `EvalLanes.chunk` gives.

  All rows come, so that every host can count every document; the tokens only of those to `read`.
  """
  return _read_ahead(_Batches(lambda i: lanes.chunk(i, read=read), start, len(lanes)), prefetch)


class _Batches:
  """Batches as a source that Grain can index."""

  def __init__(self, batch: Callable[[int], Batch], start: int, stop: int):
    self._batch, self._start, self._size = batch, start, max(0, stop - start)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Batch:
    return self._batch(self._start + int(index))


def _read_ahead(source: _Batches, prefetch: int) -> Iterator[Batch]:
  from absl import flags

  with quiet():
    import grain  # here, for it brings JAX along, which `prepare` and its workers never need

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads flags, which a notebook or a test never parses
  if not len(source):
    return
  # Few threads: a batch is mostly memory copies, and the interpreter runs one at a time.
  options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
  with quiet():
    yield from grain.MapDataset.source(source).to_iter_dataset(options)
