"""Companions: the second state of each lane, which reads without gradient, for warm memories.

A companion reads one piece of earlier text at every step. After its planned length it starts again
with an empty state and another text. The plan is a pure function of (seed, k), as a batch is.

With `growth` a companion fast-forwards: after the first piece, each piece counts several times,
so that the counted text grows by this factor at every step. A million tokens then take about
log(1M / tokens of a piece) / log(growth) steps.
"""

import functools
from typing import NamedTuple

import numpy as np

from infini_jax.config import WarmConfig

PLANNED = 256  # the streams (texts) of a lane that are planned together


class TextPiece(NamedTuple):
  """What a companion reads at a step: piece `chunk` of its text `stream`, both from 0."""

  stream: int
  chunk: int


class Companions:
  """The plan of all companions.

  Args:
    config: how often examples start warm, and how much a companion reads.
    segment_length: N.
    seed: the seed of the plan.

  Attributes:
    tokens: of a piece: what a companion reads at every step.
  """

  def __init__(self, config: WarmConfig, segment_length: int, seed: int):
    self.tokens = config.segments * segment_length
    self._config, self._seed = config, seed
    self._lengths = functools.lru_cache(4096)(self._draw_lengths)
    self._ends = functools.lru_cache(4096)(self._plan)

  def reading(self, lane: int, k: int) -> TextPiece:
    """What the companion of a lane reads at step k."""
    block, begin = 0, 0
    while begin + (ends := self._ends(lane, block))[-1] <= k:
      begin, block = begin + int(ends[-1]), block + 1
    index = int(np.searchsorted(ends, k - begin, side="right"))
    start = int(ends[index - 1]) if index else 0
    return TextPiece(block * PLANNED + index, k - begin - start)

  def warm(self, lane: int, k: int) -> TextPiece | None:
    """The companion's last reading before step k, if the lane takes over its state at step k."""
    lucky = np.random.default_rng((self._seed, 0, lane, k)).random() < self._config.share
    return self.reading(lane, k - 1) if lucky and k >= max(1, self._config.start_step) else None

  def planned(self, lane: int, stream: int) -> int:
    """The tokens that are read of a stream; whole pieces."""
    ends = self._ends(lane, stream // PLANNED)
    index = stream % PLANNED
    return int(ends[index] - (ends[index - 1] if index else 0)) * self.tokens

  def times(self, lane: int, reading: TextPiece) -> float:
    """How many times a reading counts, if it is filler."""
    length = float(self._lengths(lane, reading.stream // PLANNED)[reading.stream % PLANNED])
    return counts(length / self.tokens, self._config.growth)[reading.chunk]

  def _draw_lengths(self, lane: int, block: int) -> np.ndarray:
    """The planned tokens of each stream of a block, (PLANNED,) float64."""
    rng = np.random.default_rng((self._seed, 1, lane, block))
    low, high = np.log(self._config.min_tokens), np.log(self._config.max_tokens)
    return np.exp(rng.uniform(low, high, PLANNED))

  def _plan(self, lane: int, block: int) -> np.ndarray:
    """The steps at which the streams of a block end, counted from its start."""
    pieces = (self._lengths(lane, block) / self.tokens).tolist()
    return np.cumsum([len(counts(length, self._config.growth)) for length in pieces])


@functools.lru_cache(4096)
def counts(length: float, growth: float) -> tuple[float, ...]:
  """How many times each piece of a text counts, 1 or more, so that all count as `length` pieces.

  Each piece but the first and the last multiplies the sum of the counts by `growth`, or counts 1 if
  that is more.
  """
  if growth == 1:
    return (1.0,) * max(1, round(length))
  times, total = [1.0], 1.0
  while (left := length - total) >= 0.5:
    times.append(max(1.0, min(total * (growth - 1), left)))
    total += times[-1]
  return tuple(times)
