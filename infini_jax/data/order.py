"""Where documents stand in the lanes: shuffled without end, or each once.

Lanes are counted in segments here, from 0 on; `segments_D` is the length of each document.
"""

import bisect
import functools
import heapq
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 65_536  # places of documents in the training order that are laid out at a time


class Piece(NamedTuple):
  """Some segments of a document, side by side in one lane of one chunk."""

  document: int
  first: int  # segment of the document where the piece starts
  slot: int  # segment of the chunk where it stands
  segments: int


class Shuffle:
  """The endless order of training: epoch after epoch, each a fresh permutation of the documents.

  The document at place e of that sequence goes to lane e % B. The order is laid out block by block,
  the last few blocks kept.

  A block is R rounds; a round gives one document to each lane. Only the segment at which a block
  starts is kept for every block, so that a long run needs little memory.
  """

  def __init__(self, segments_D: np.ndarray, lanes: int, seed: int):
    self._segments_D, self._lanes, self._seed = segments_D, lanes, seed
    self._rounds = max(1, min(BLOCK, 8 * len(segments_D) + 1024) // lanes)
    self._reset()

  def pieces(self, lane: int, start: int, stop: int) -> Iterator[Piece]:
    """What stands at segments `start` to `stop` of a lane."""
    at = start
    while at < stop:
      documents, begins, ends = self._block_at(lane, at)
      place = int(np.searchsorted(ends, at, side="right"))
      while at < stop and place < len(ends):
        count = min(stop, int(ends[place])) - at
        yield Piece(int(documents[place]), at - int(begins[place]), at - start, count)
        at, place = at + count, place + 1

  def _block_at(self, lane: int, segment: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents of a lane's block around a segment, and where each begins and ends: (R,) each."""
    with self._lock:
      while self._starts[-1][lane] <= segment:
        self._starts.append(self._block(len(self._starts) - 1)[2][-1])
      block = bisect.bisect_right(self._starts, segment, key=lambda starts_B: starts_B[lane]) - 1
      documents_RB, begins_RB, ends_RB = self._block(block)
    return documents_RB[:, lane], begins_RB[:, lane], ends_RB[:, lane]

  def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = self._rounds * self._lanes
    places = range(block * size, (block + 1) * size)
    documents_RB = self._documents(places).reshape(self._rounds, self._lanes)
    lengths_RB = self._segments_D[documents_RB]
    ends_RB = self._starts[block] + np.cumsum(lengths_RB, axis=0)
    return documents_RB, ends_RB - lengths_RB, ends_RB

  def _documents(self, places: range) -> np.ndarray:
    """The documents at some places of the endless sequence of epochs."""
    size = len(self._segments_D)
    epochs = range(places.start // size, (places.stop - 1) // size + 1)
    start = epochs.start * size
    documents = np.concatenate([self._epoch(epoch) for epoch in epochs])
    return documents[places.start - start : places.stop - start]

  def _permute(self, epoch: int) -> np.ndarray:
    # Raw bits sorted, not Generator.permutation: NumPy promises that these never change.
    bits = np.random.PCG64(np.random.SeedSequence((self._seed, epoch)))
    return np.argsort(bits.random_raw(len(self._segments_D)), kind="stable")

  def _reset(self) -> None:
    self._lock = threading.Lock()
    self._starts = [np.zeros(self._lanes, np.int64)]
    self._block = functools.lru_cache(8)(self._lay_out)
    self._epoch = functools.lru_cache(2)(self._permute)

  def __getstate__(self) -> dict:
    caches = ("_lock", "_starts", "_block", "_epoch")
    return {name: value for name, value in self.__dict__.items() if name not in caches}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._reset()


class Schedule:
  """Every document once, longest first, each in the lane that is free first."""

  def __init__(self, segments_D: np.ndarray, lanes: int):
    self._documents: list[list[int]] = [[] for _ in range(lanes)]
    self._ends: list[list[int]] = [[] for _ in range(lanes)]
    free = [(0, lane) for lane in range(lanes)]
    for document in np.argsort(-segments_D, kind="stable").tolist():
      start, lane = free[0]
      end = start + int(segments_D[document])
      heapq.heapreplace(free, (end, lane))
      self._documents[lane].append(document)
      self._ends[lane].append(end)
    self._length = max(end for end, _ in free)

  def __len__(self) -> int:
    """Segments of the longest lane."""
    return self._length

  def pieces(self, lane: int, start: int, stop: int) -> Iterator[Piece]:
    """What stands at segments `start` to `stop` of a lane; nothing where the lane has ended."""
    documents, ends = self._documents[lane], self._ends[lane]
    at = start
    for place in range(bisect.bisect_right(ends, start), len(ends)):
      if at >= stop:
        return
      begin = ends[place - 1] if place else 0
      count = min(stop, ends[place]) - at
      yield Piece(documents[place], at - begin, at - start, count)
      at += count
