"""Tasks in lanes: whole examples packed into training chunks, or streamed for an evaluation."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infini_jax.config import Config
from infini_jax.data.lanes.documents import ALL, Batch, Rows, empty_batch
from infini_jax.data.lanes.warm import Companions, TextPiece
from infini_jax.tasks.example import Example, Task, check_length


def empty_asking(lanes: int, segments: int, segment_length: int) -> Batch:
  """As `empty_batch`, with two more arrays: weights_BT, float32 zeros, and asked_BT, all False."""
  batch = empty_batch(lanes, segments, segment_length)
  shape = batch["tokens_BT"].shape
  return batch | {"weights_BT": np.zeros(shape, np.float32), "asked_BT": np.zeros(shape, bool)}


def lay(example: Example, row: Batch, start: int, first: int, weight: float = 1.0) -> None:
  """Writes an example into a batch row.

  Args:
    example: its n tokens become the targets.
    row: arrays of T tokens, one row of `empty_asking`; changed in place.
    start: the position in the row where the example begins.
    first: the input token before the example.
    weight: a factor of all its loss weights.
  """
  n = len(example)
  at = slice(start, start + n)
  row["tokens_BT"][at] = np.append(np.int32(first), example.read(0, n - 1))
  row["targets_BT"][at] = example.read(0, n)
  row["weights_BT"][at] = example.weights(0, n) * weight
  row["asked_BT"][at] = example.asked(0, n)
  row["mask_BT"][at] = True


def count_filler(example: Example, row: Batch, start: int, counted: float) -> None:
  """Makes the filler of an example count as `counted` tokens, or once if it has more.

  Args:
    example: it is in the row already.
    row: with times_BT; changed in place.
    start: the position in the row where the example begins.
    counted: tokens.
  """
  filler = example.filler(0, len(example) - 1)  # targets; each is the next input
  times = row["times_BT"][start + 1 : start + len(example)]
  times[filler] = max(1.0, counted / max(1, filler.sum()))


class Before(NamedTuple):
  """The earlier text that an example continues.

  Attributes:
    text: from its start.
    tokens: how many of them were read.
    counted: how many tokens the memory counts for them.
  """

  text: Example
  tokens: int
  counted: float


class TaskLanes:
  """The endless training of a task: every chunk is packed with whole examples.

  An example starts at a segment border, with a reset. Its number of segments is log-uniform, so
  there are always many short examples, from which a memory learns first. With warm memory, the
  first example of a chunk may instead continue the text of the lane's companion.

  Args:
    task: the kind of example.
    config: the config of the run.

  Raises:
    InputError: the shortest examples are too short for the task.
  """

  def __init__(self, task: Task, config: Config):
    self.lanes, self.segments = config.data.lanes, config.data.segments
    self.segment_length = config.model.segment_length
    self._task, self._seed, self._config = task, config.train.seed, config.task
    self._bos = np.array([task.tokenizer.bos], np.int32)
    self._companions, self._warm_weight = None, config.warm.weight
    self._grows, self._filler = config.warm.growth > 1, config.warm.filler
    if config.warm.share:
      self._companions = Companions(config.warm, self.segment_length, self._seed)
    self._earlier = functools.lru_cache(4 * self.lanes)(self._begin)
    shortest = self._config.min_segments * self.segment_length
    setting = f"config.task.min_segments={self._config.min_segments}"
    check_length(shortest, task.shortest_training, setting)

  def longest(self, k: int) -> int:
    """The segments of the longest example at step k."""
    least, steps = self._config.min_segments, self._config.curriculum_steps
    grown = min(1.0, k / steps) if steps else 1.0
    return round(least * (self.segments / least) ** grown)

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it.

    Returns:
      The arrays of `TrainLanes.batch`, and
      weights_BT: float32, the loss weight of each target.
      asked_BT: bool, True where the target is part of an answer.
      With warm memory, a piece for each companion: warm_tokens_BT: int32, warm_mask_BT: bool,
      warm_reset_BS: bool; and warm_B: bool, the lanes that take over the companion's state.
      With `warm.growth`, warm_times_B: float32, how many times the companion's tokens count.
      With `warm.filler`, times_BT: float32, how many times the memory counts each input token.
    """
    lanes = np.arange(self.lanes)[rows].tolist()
    batch = empty_asking(len(lanes), self.segments, self.segment_length)
    if self._filler:
      batch["times_BT"] = np.ones_like(batch["weights_BT"])
    for row, lane in enumerate(lanes):
      self._pack({name: values[row] for name, values in batch.items()}, lane, k)
    if self._companions:
      pieces = [self._read_along(self._companions, lane, k) for lane in lanes]
      batch |= {name: np.stack([piece[name] for piece in pieces]) for name in pieces[0]}
    return batch

  def _pack(self, row: Batch, lane: int, k: int) -> None:
    rng = np.random.default_rng((self._seed, 2, lane, k))
    N, least, longest = self.segment_length, self._config.min_segments, self.longest(k)
    slot = 0
    while (most := min(longest, self.segments - slot)) >= least:
      segments = int(least * ((most + 1) / least) ** rng.random())
      if self.segments - slot - segments < least and most == self.segments - slot:
        segments = most  # no example would fit after it
      tokens = (segments - 1) * N + 1 + int(rng.integers(N))
      tokens = max(tokens, self._task.shortest_training)
      read_before = self._read_before(lane, k) if slot == 0 else None
      if read_before is None:
        first, weight = self._task.tokenizer.bos, 1.0
        example = self._task.example(rng, tokens, held_out=False)
      else:
        before, read = read_before.text, read_before.tokens
        first, weight = int(before.read(read - 1, read)[0]), self._warm_weight
        example = self._task.continuation(rng, before, read, tokens)
      lay(example, row, slot * N, first, weight)
      if read_before is not None and self._filler:
        count_filler(example, row, slot * N, self._filler * read_before.counted)
      row["reset_BS"][slot] = read_before is None
      slot += segments
    row["reset_BS"][slot:] = True

  def _read_before(self, lane: int, k: int) -> Before | None:
    """The text of the companion that the first example of the lane continues."""
    if self._companions is None or (last := self._companions.warm(lane, k)) is None:
      return None
    text, size = self._earlier(lane, last.stream), self._companions.tokens
    times = last.chunk + 1.0
    if self._filler and self._grows:
      times = sum(self._times(lane, last._replace(chunk=i)) for i in range(last.chunk + 1))
    return Before(text, (last.chunk + 1) * size, times * size)

  def _read_along(self, companions: Companions, lane: int, k: int) -> Batch:
    reading, size = companions.reading(lane, k), companions.tokens
    stream, start = self._earlier(lane, reading.stream), reading.chunk * size
    tokens = np.concatenate([self._bos[start:], stream.read(max(0, start - 1), start + size - 1)])
    reset = np.zeros(size // self.segment_length, bool)
    reset[0] = reading.chunk == 0
    times = {}
    if self._grows:
      times["warm_times_B"] = np.array(self._times(lane, reading), np.float32)
    return times | {
      "warm_tokens_BT": tokens.astype(np.int32),
      "warm_mask_BT": np.ones(size, bool),
      "warm_reset_BS": reset,
      "warm_B": np.array(companions.warm(lane, k) is not None),
    }

  def _times(self, lane: int, reading: TextPiece) -> float:
    """How many times a reading counts; text on which an answer depends counts once."""
    assert self._companions is not None
    start, size = reading.chunk * self._companions.tokens, self._companions.tokens
    filler = self._earlier(lane, reading.stream).filler(max(0, start - 1), start + size - 1)
    return self._companions.times(lane, reading) if filler.all() else 1.0

  def _begin(self, lane: int, stream: int) -> Example:
    rng = np.random.default_rng((self._seed, 3, lane, stream))
    assert self._companions is not None
    return self._task.beginning(rng, self._companions.planned(lane, stream))


class Examples:
  """New held-out examples as documents, for `EvalLanes`: `samples` of each depth, depth by depth.

  Args:
    task: the kind of example.
    length: the tokens of each example.
    depths: where the key is, 0 to 1.
    samples: the number of examples of each depth.
    seed: the seed of the examples.

  Attributes:
    first_asked: the position of the first answer token of all examples.
  """

  def __init__(self, task: Task, length: int, depths: Sequence[float], samples: int, seed: int):
    # Seeded by length, depth and number: an example does not depend on the other examples.
    draws = lambda depth, i: np.random.default_rng((seed, 4, length, round(depth * 2**32), i))
    self._examples = [
      task.example(draws(depth, i), length, depth, held_out=True)
      for depth in depths
      for i in range(samples)
    ]
    self._samples = samples
    self.tokens = np.full(len(self._examples), length, np.int64)
    self.first_asked = min(example.first_asked for example in self._examples)

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of an example, (stop - start,) int32."""
    return self._examples[document].read(start, stop)

  def trunk(self, chunk: int) -> tuple[int, np.ndarray]:
    """The example whose beginning most others have too, and how much of it each of them has.

    Args:
      chunk: the tokens of a chunk; only whole chunks count.

    Returns:
      The index of this example, and the shared tokens of each example, (examples,) int64. The
      state after these tokens can be forked.
    """
    tried = range(0, len(self._examples), max(1, self._samples))  # the first of each depth
    shared_XX = np.array([[self._examples[t].shared(e) for e in self._examples] for t in tried])
    for row, t in zip(shared_XX, tried, strict=True):
      row[t] = max(np.delete(row, t), default=0)  # not all of itself, which saves no reading
    shared_XX = np.minimum(shared_XX, self.first_asked) // chunk * chunk
    best = int((shared_XX.sum(1) - shared_XX.max(1)).argmax())
    return tried[best], shared_XX[best]

  def asked(self, document: int, start: int, stop: int) -> np.ndarray:
    """Which of those tokens belong to an answer, bool; fewer at the end of the example."""
    return self._examples[document].asked(start, stop)
