"""Companions: what each lane's second, gradient-free state reads, so that memories start warm.

A companion reads W tokens of earlier text at every step, until it has read its planned length, and
then starts anew. All is a pure function of (seed, k), as everything in a batch is.

With growth it fast-forwards: after the first W tokens each piece counts so often that the text, as
counted, grows by a factor at every step. A million tokens then take log(1M / W) steps.
"""

import functools
from typing import NamedTuple

import numpy as np

from infini_jax.config import WarmConfig

PLANNED = 256  # streams of a lane that are planned at a time


class Reading(NamedTuple):
  """What a companion does at a step: the `chunk`-th piece of its `stream`-th text."""

  stream: int
  chunk: int


class Companions:
  """The plan of all companions.

  Args:
    config: how often, how much, how long.
    segment_length: N.
    seed: of the plan.

  Attributes:
    tokens: W, what a companion reads at every step.
  """

  def __init__(self, config: WarmConfig, segment_length: int, seed: int):
    self.tokens = config.segments * segment_length
    self._config, self._seed = config, seed
    self._lengths = functools.lru_cache(4096)(self._draw_lengths)
    self._ends = functools.lru_cache(4096)(self._plan)

  def reading(self, lane: int, k: int) -> Reading:
    """What the companion of a lane reads at step k."""
    block, begin = 0, 0
    while begin + (ends := self._ends(lane, block))[-1] <= k:
      begin, block = begin + int(ends[-1]), block + 1
    place = int(np.searchsorted(ends, k - begin, side="right"))
    start = int(ends[place - 1]) if place else 0
    return Reading(block * PLANNED + place, k - begin - start)

  def warm(self, lane: int, k: int) -> Reading | None:
    """What the companion read last before step k, if the lane takes its state over then."""
    lucky = np.random.default_rng((self._seed, 0, lane, k)).random() < self._config.share
    return self.reading(lane, k - 1) if lucky and k >= max(1, self._config.start_step) else None

  def planned(self, lane: int, stream: int) -> int:
    """Tokens of a stream that are read, whole pieces."""
    ends = self._ends(lane, stream // PLANNED)
    place = stream % PLANNED
    return int(ends[place] - (ends[place - 1] if place else 0)) * self.tokens

  def times(self, lane: int, reading: Reading) -> float:
    """How often what is read then counts, where none of it will be asked for."""
    length = float(self._lengths(lane, reading.stream // PLANNED)[reading.stream % PLANNED])
    return counts(length / self.tokens, self._config.growth)[reading.chunk]

  def _draw_lengths(self, lane: int, block: int) -> np.ndarray:
    """The planned tokens of the streams of a block."""
    rng = np.random.default_rng((self._seed, 1, lane, block))
    low, high = np.log(self._config.min_tokens), np.log(self._config.max_tokens)
    return np.exp(rng.uniform(low, high, PLANNED))

  def _plan(self, lane: int, block: int) -> np.ndarray:
    """Where the streams of a block end, in steps."""
    pieces = (self._lengths(lane, block) / self.tokens).tolist()
    return np.cumsum([len(counts(length, self._config.growth)) for length in pieces])


@functools.lru_cache(4096)
def counts(length: float, growth: float) -> tuple[float, ...]:
  """How often each piece of a text counts, 1 or more, so that it counts as `length` pieces.

  All but the first and the last make what was counted before them `growth` times as much, where
  that is more than the piece itself.
  """
  if growth == 1:
    return (1.0,) * max(1, round(length))
  times, total = [1.0], 1.0
  while (left := length - total) >= 0.5:
    times.append(max(1.0, min(total * (growth - 1), left)))
    total += times[-1]
  return tuple(times)
