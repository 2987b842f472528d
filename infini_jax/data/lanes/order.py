"""The order of documents in the lanes: endless and shuffled, of one store or several; or each once.

Positions in a lane are counted in segments here, from 0. `segments_X` is the length of each
document in segments.
"""

import bisect
import functools
import heapq
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 65_536  # the most documents of one block; the training order is computed block by block


class Piece(NamedTuple):
  """Consecutive segments of a document, in one lane of one chunk."""

  document: int
  first: int  # the segment of the document where the piece starts
  slot: int  # the segment of the chunk where the piece starts
  segments: int  # how many


_Laid = tuple[np.ndarray, np.ndarray, np.ndarray]  # a lane's documents, begins, ends


class Mix(NamedTuple):
  """How several stores are mixed."""

  store_X: np.ndarray  # the number of the store of each document, from 0
  weights: tuple[float, ...]  # the share of each store in the tokens
  stages: tuple[tuple[int, tuple[float, ...]], ...] = ()  # other weights from a segment on


class _Endless:
  """An endless order of training, computed block by block.

  It keeps the last few blocks, and of all others only where they start. So a long run needs little
  memory.
  """

  def __init__(self, first: tuple, stores: int = 1):
    self._first = first  # where block 0 starts; its first item is the segment of each lane
    self._stores = stores
    self._reset()

  def pieces(self, lane: int, start: int, stop: int) -> Iterator[Piece]:
    """The pieces at segments `start` to `stop` of a lane."""
    at = start
    while at < stop:
      documents, begins, ends = self._block_at(lane, at)
      index = int(np.searchsorted(ends, at, side="right"))
      while at < stop and index < len(ends):
        count = min(stop, int(ends[index])) - at
        yield Piece(int(documents[index]), at - int(begins[index]), at - start, count)
        at, index = at + count, index + 1

  def _lay_out(self, block: int) -> tuple[Sequence[_Laid], tuple]:
    """The documents of a block, lane by lane, and where the next block starts."""
    raise NotImplementedError

  def _permute(self, *key: int) -> np.ndarray:
    """The documents of an epoch, in the order of that epoch."""
    raise NotImplementedError

  def _block_at(self, lane: int, segment: int) -> _Laid:
    with self._lock:
      while self._starts[-1][0][lane] <= segment:
        self._starts.append(self._block(len(self._starts) - 1)[1])
      block = bisect.bisect_right(self._starts, segment, key=lambda start: start[0][lane]) - 1
      return self._block(block)[0][lane]

  def _reset(self) -> None:
    self._lock = threading.Lock()
    self._starts = [self._first]
    self._block = functools.lru_cache(8)(self._lay_out)
    self._epoch = functools.lru_cache(2 * self._stores)(self._permute)

  def __getstate__(self) -> dict:
    caches = ("_lock", "_starts", "_block", "_epoch")
    return {name: value for name, value in self.__dict__.items() if name not in caches}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._reset()


class Shuffle(_Endless):
  """One store: epoch after epoch, each a new permutation of the documents.

  Document e of this sequence, counted from 0, goes to lane e % B. A block consists of rounds; a
  round gives one document to each lane.
  """

  def __init__(self, segments_X: np.ndarray, lanes: int, seed: int):
    self._segments_X, self._lanes, self._seed = segments_X, lanes, seed
    self._rounds = max(1, min(BLOCK, 8 * len(segments_X) + 256) // lanes)
    super().__init__((np.zeros(lanes, np.int64),))

  def _lay_out(self, block: int) -> tuple[Sequence[_Laid], tuple]:
    size = self._rounds * self._lanes
    positions = range(block * size, (block + 1) * size)
    documents = self._documents(positions).reshape(self._rounds, self._lanes)
    lengths = self._segments_X[documents]
    ends = self._starts[block][0] + np.cumsum(lengths, axis=0)
    laid = list(zip(documents.T, (ends - lengths).T, ends.T, strict=True))
    return laid, (ends[-1],)

  def _documents(self, positions: range) -> np.ndarray:
    """The documents at some positions of the endless sequence of epochs."""
    size = len(self._segments_X)
    epochs = range(positions.start // size, (positions.stop - 1) // size + 1)
    start = epochs.start * size
    documents = np.concatenate([self._epoch(epoch) for epoch in epochs])
    return documents[positions.start - start : positions.stop - start]

  def _permute(self, *key: int) -> np.ndarray:
    return _permutation((self._seed, *key), len(self._segments_X))


class Mixed(_Endless):
  """Several stores, mixed by their shares of the tokens. Each store has epochs of its own.

  A free lane takes the next document of the store that is furthest behind its weight. So the tokens
  of each store follow the weights as closely as whole documents allow. Where a stage begins, the
  count starts again, and documents under way are read to their end.

  Args:
    segments_X: the segments of each document.
    tokens_X: the tokens of each document.
    mix: the store of each document, the weights, and the stages with other weights.
    lanes: B.
    seed: the seed of the orders of all epochs.
  """

  def __init__(self, segments_X: np.ndarray, tokens_X: np.ndarray, mix: Mix, lanes: int, seed: int):
    self._segments_X, self._tokens_X, self._seed = segments_X, tokens_X, seed
    self._stages = ((0, mix.weights), *mix.stages)
    self._own = [np.flatnonzero(mix.store_X == i) for i in range(len(mix.weights))]
    self._size = min(BLOCK, 8 * len(segments_X) + 256)
    nothing = [0] * len(mix.weights)
    super().__init__(([0] * lanes, nothing, nothing, 0), len(mix.weights))

  def _lay_out(self, block: int) -> tuple[Sequence[_Laid], tuple]:
    # Documents of each store since the beginning, and its tokens since the stage began.
    segment_B, taken, given, stage = self._starts[block]
    taken, given, stores = [*taken], [*given], range(len(taken))
    free = [(segment, lane) for lane, segment in enumerate(segment_B)]
    heapq.heapify(free)
    rows: list[list[tuple[int, int, int]]] = [[] for _ in free]
    for _ in range(self._size):
      begin, lane = free[0]
      while stage + 1 < len(self._stages) and self._stages[stage + 1][0] <= begin:
        stage, given = stage + 1, [0 for _ in stores]
      store = self._furthest_behind(given, stage)
      epoch, index = divmod(taken[store], len(self._own[store]))
      document = self._epoch(epoch, store)[index]
      end = begin + int(self._segments_X[document])
      heapq.heapreplace(free, (end, lane))
      rows[lane].append((document, begin, end))
      taken[store] += 1
      given[store] += int(self._tokens_X[document])
    columns = (np.array(row, np.int64).reshape(-1, 3).T for row in rows)
    laid = [(documents, begins, ends) for documents, begins, ends in columns]
    next_B = [end for end, _ in sorted(free, key=lambda one: one[1])]
    return laid, (next_B, taken, given, stage)

  def _furthest_behind(self, given: list[int], stage: int) -> int:
    weights = self._stages[stage][1]
    read = (i for i, weight in enumerate(weights) if weight)
    return min(read, key=lambda i: given[i] / weights[i])

  def _permute(self, *key: int) -> np.ndarray:
    own = self._own[key[1]]
    return own[_permutation((self._seed, *key), len(own))]


def _permutation(seed: tuple[int, ...], size: int) -> np.ndarray:
  # Sorted raw bits, not Generator.permutation: NumPy guarantees that raw bits never change.
  bits = np.random.PCG64(np.random.SeedSequence(seed))
  return np.argsort(bits.random_raw(size), kind="stable")


class Schedule:
  """Each document once: the longest first, each in the lane that is free first."""

  def __init__(self, segments_X: np.ndarray, lanes: int):
    self._documents: list[list[int]] = [[] for _ in range(lanes)]
    self._ends: list[list[int]] = [[] for _ in range(lanes)]
    free = [(0, lane) for lane in range(lanes)]
    for document in np.argsort(-segments_X, kind="stable").tolist():
      start, lane = free[0]
      end = start + int(segments_X[document])
      heapq.heapreplace(free, (end, lane))
      self._documents[lane].append(document)
      self._ends[lane].append(end)
    self._length = max(end for end, _ in free)

  def __len__(self) -> int:
    """The segments of the longest lane."""
    return self._length

  def pieces(self, lane: int, start: int, stop: int) -> Iterator[Piece]:
    """The pieces at segments `start` to `stop` of a lane; none where the lane has ended."""
    documents, ends = self._documents[lane], self._ends[lane]
    at = start
    for index in range(bisect.bisect_right(ends, start), len(ends)):
      if at >= stop:
        return
      begin = ends[index - 1] if index else 0
      count = min(stop, ends[index]) - at
      yield Piece(documents[index], at - begin, at - start, count)
      at += count
