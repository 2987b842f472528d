"""Tasks in lanes: whole examples packed into training chunks, or streamed to be evaluated."""

import functools
from collections.abc import Sequence

import numpy as np

from infini_jax.config import Config
from infini_jax.data.lanes.documents import ALL, Batch, Rows, empty_batch
from infini_jax.data.lanes.warm import Companions
from infini_jax.tasks.example import Example, Task, check_length


def empty_asking(lanes: int, segments: int, segment_length: int) -> Batch:
  """As `empty_batch`, with the weight of each target and whether it is asked for: none."""
  batch = empty_batch(lanes, segments, segment_length)
  shape = batch["tokens_BT"].shape
  return batch | {"weights_BT": np.zeros(shape, np.float32), "asked_BT": np.zeros(shape, bool)}


def lay(example: Example, row: Batch, start: int, first: int, weight: float = 1.0) -> None:
  """Writes an example into a row of a batch.

  Args:
    example: of n tokens, which become the targets.
    row: arrays of T tokens, as of `empty_asking`; changed.
    start: where the example begins in it.
    first: the token that is read before the example.
    weight: of the whole example.
  """
  n = len(example)
  at = slice(start, start + n)
  row["tokens_BT"][at] = np.append(np.int32(first), example.read(0, n - 1))
  row["targets_BT"][at] = example.read(0, n)
  row["weights_BT"][at] = example.weights(0, n) * weight
  row["asked_BT"][at] = example.asked(0, n)
  row["mask_BT"][at] = True


class TaskLanes:
  """The endless training of a task: every chunk is packed with whole examples.

  An example starts on a segment, with a reset. How many segments it has is log-uniform, so that
  there are always many short ones, from which a memory learns to begin with. With warm memory the
  first example of a chunk may instead go on where the lane's companion stands.

  Args:
    task: what is asked.
    config: of the run.

  Raises:
    InputError: the shortest examples are too short for the task.
  """

  def __init__(self, task: Task, config: Config):
    self.lanes, self.segments = config.data.lanes, config.data.segments
    self.segment_length = config.model.segment_length
    self._task, self._seed, self._config = task, config.train.seed, config.task
    self._bos = np.array([task.tokenizer.bos], np.int32)
    self._companions, self._warm_weight = None, config.warm.weight
    self._grows = config.warm.growth > 1
    if config.warm.share:
      self._companions = Companions(config.warm, self.segment_length, self._seed)
    self._earlier = functools.lru_cache(4 * self.lanes)(self._begin)
    shortest = self._config.min_segments * self.segment_length
    setting = f"config.task.min_segments={self._config.min_segments}"
    check_length(shortest, task.shortest_training, setting)

  def longest(self, k: int) -> int:
    """Segments of the longest example at step k."""
    least, steps = self._config.min_segments, self._config.curriculum_steps
    grown = min(1.0, k / steps) if steps else 1.0
    return round(least * (self.segments / least) ** grown)

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it.

    Returns:
      As `TrainLanes.batch`, and
      weights_BT: float32, the loss weight of each target.
      asked_BT: bool, True where the target is of an answer.
      With warm memory, W tokens for each companion to read, and who takes its state over:
      warm_tokens_BT: int32, warm_mask_BT: bool, warm_reset_BS: bool, warm_B: bool; with
      `warm.growth` how often it counts, warm_times_B: float32.
    """
    lanes = np.arange(self.lanes)[rows].tolist()
    batch = empty_asking(len(lanes), self.segments, self.segment_length)
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
        segments = most  # nothing would fit behind it
      tokens = (segments - 1) * N + 1 + int(rng.integers(N))
      tokens = max(tokens, self._task.shortest_training)
      read_before = self._read_before(lane, k) if slot == 0 else None
      if read_before is None:
        first, weight = self._task.tokenizer.bos, 1.0
        example = self._task.example(rng, tokens, held_out=False)
      else:
        before, read = read_before
        first, weight = int(before.read(read - 1, read)[0]), self._warm_weight
        example = self._task.continuation(rng, before, read, tokens)
      lay(example, row, slot * N, first, weight)
      row["reset_BS"][slot] = read_before is None
      slot += segments
    row["reset_BS"][slot:] = True

  def _read_before(self, lane: int, k: int) -> tuple[Example, int] | None:
    """What the lane's first example goes on after: a text, and how much of it was read."""
    if self._companions is None or (last := self._companions.warm(lane, k)) is None:
      return None
    return self._earlier(lane, last.stream), (last.chunk + 1) * self._companions.tokens

  def _read_along(self, companions: Companions, lane: int, k: int) -> Batch:
    reading, W = companions.reading(lane, k), companions.tokens
    stream, start = self._earlier(lane, reading.stream), reading.chunk * W
    span = max(0, start - 1), start + W - 1
    tokens = np.concatenate([self._bos[start:], stream.read(*span)])
    reset = np.zeros(W // self.segment_length, bool)
    reset[0] = reading.chunk == 0
    times = {}
    if self._grows:  # what will be asked for counts once
      often = companions.times(lane, reading) if stream.is_filler(*span) else 1.0
      times["warm_times_B"] = np.array(often, np.float32)
    return times | {
      "warm_tokens_BT": tokens.astype(np.int32),
      "warm_mask_BT": np.ones(W, bool),
      "warm_reset_BS": reset,
      "warm_B": np.array(companions.warm(lane, k) is not None),
    }

  def _begin(self, lane: int, stream: int) -> Example:
    rng = np.random.default_rng((self._seed, 3, lane, stream))
    assert self._companions is not None
    return self._task.beginning(rng, self._companions.planned(lane, stream))


class Examples:
  """Fresh held-out examples as documents, for `EvalLanes`: `samples` of each depth, depth by depth.

  Args:
    task: what is asked.
    length: tokens of each.
    depths: where the key stands, 0 to 1.
    samples: how many of each depth.
    seed: of the examples.

  Attributes:
    first_asked: the place of the first token that any of them asks for.
  """

  def __init__(self, task: Task, length: int, depths: Sequence[float], samples: int, seed: int):
    # By what an example is, and not by its place in a list: it is the same whatever else is asked.
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
    """Tokens `start` to `stop` of an example."""
    return self._examples[document].read(start, stop)

  def trunk(self, chunk: int) -> tuple[int, np.ndarray]:
    """An example that begins as others do, and how much of it each begins with.

    Args:
      chunk: tokens; only whole chunks count.

    Returns:
      Its place among the examples, and tokens for each, (examples,) int64: where a text that is
      read once can be forked.
    """
    tried = range(0, len(self._examples), max(1, self._samples))  # the first of each depth
    shared_TD = np.array([[self._examples[t].shared(e) for e in self._examples] for t in tried])
    for row, t in zip(shared_TD, tried, strict=True):
      row[t] = max(np.delete(row, t), default=0)  # of itself it has all, which helps nobody
    shared_TD = np.minimum(shared_TD, self.first_asked) // chunk * chunk
    best = int((shared_TD.sum(1) - shared_TD.max(1)).argmax())
    return tried[best], shared_TD[best]

  def asked(self, document: int, start: int, stop: int) -> np.ndarray:
    """Which of those tokens are asked for, bool; fewer at the example's end."""
    return self._examples[document].asked(start, stop)
