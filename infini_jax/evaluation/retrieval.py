"""Retrieval: the answer at the end of a text depends on a fact that was read once, far before.

Examples are read chunk after chunk with the state carried, so a million tokens need as much memory
as a thousand. The common beginning of long examples is read once, and its state is forked. An
answer is right if each of its tokens is the likeliest, given the tokens before it; then greedy
decoding would generate it.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import EvalLanes
from infini_jax.data.sources.base import digest
from infini_jax.evaluation.kept import Kept
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.reading import Reader
from infini_jax.models.states import has_one_size
from infini_jax.tasks import Examples, Task, check_length

Advance = Callable[[int, str], None]  # called with the chunks done, and the accuracy so far
FORKS_FROM = 65_536  # shared tokens; for fewer, compiling another program takes longer


@dataclasses.dataclass(frozen=True)
class Cell:
  """All examples of one length and depth."""

  length: int
  depth: float
  samples: int
  exact: int  # examples whose whole answer is right
  tokens: int  # tokens of all answers
  right: int  # tokens of answers that are right
  # The number of independent tokens with the same information; None: all tokens are independent.
  independent: float | None = dataclasses.field(default=None, compare=False)

  @property
  def exact_match(self) -> float:
    """The share of examples whose whole answer is right."""
    return self.exact / self.samples

  @property
  def token_accuracy(self) -> float:
    """The share of answer tokens that are right."""
    return self.right / self.tokens

  @property
  def token_interval(self) -> tuple[float, float]:
    """The 95% interval of `token_accuracy` over examples."""
    count = self.tokens if self.independent is None else self.independent
    return wilson(self.token_accuracy * count, count)

  def to_dict(self) -> dict[str, Any]:
    """The figures for JSON, with 95% confidence intervals."""
    return dataclasses.asdict(self) | {
      "exact_match": self.exact_match,
      "exact_match_interval": wilson(self.exact, self.samples),
      "token_accuracy": self.token_accuracy,
      "token_accuracy_interval": self.token_interval,
    }


@dataclasses.dataclass(frozen=True)
class Recalled:
  """The result of one run of an evaluation."""

  cells: tuple[Cell, ...]
  tokens: int  # tokens read
  seconds: float

  @property
  def exact_match(self) -> float:
    """The exact match over all examples."""
    return sum(c.exact for c in self.cells) / sum(c.samples for c in self.cells)

  @property
  def token_accuracy(self) -> float:
    """The token accuracy over all answer tokens."""
    return sum(c.right for c in self.cells) / sum(c.tokens for c in self.cells)

  @property
  def summary(self) -> str:
    """The figures in one line."""
    return f"exact match {self.exact_match:.1%}, answer tokens {self.token_accuracy:.1%}"

  def to_dict(self) -> dict[str, Any]:
    """The figures for JSON."""
    cells = [cell.to_dict() for cell in self.cells]
    return {
      "exact_match": self.exact_match,
      "token_accuracy": self.token_accuracy,
      "tokens": self.tokens,
      "tokens_per_second": self.tokens / self.seconds,
      "cells": cells,
    }


def wilson(right: float, total: float) -> tuple[float, float]:
  """The 95% confidence interval of a share (Wilson, 1927)."""
  z, share = 1.959964, right / total
  middle = share + z * z / (2 * total)
  half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
  scale = 1 + z * z / total
  return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def independent(asked_X: np.ndarray, right_X: np.ndarray) -> float:
  """The effective sample size of answer tokens: the number of independent tokens (Kish, 1965).

  The tokens of one answer are usually all right or all wrong. The variance between examples shows
  how strongly; without such a variance, each example counts as one token.

  Args:
    asked_X: (examples,) the answer tokens of each example.
    right_X: (examples,) those that are right.
  """
  k, total = len(asked_X), int(asked_X.sum())
  share = right_X.sum() / total
  if k < 2 or share in (0, 1):
    return k
  squares = ((right_X - share * asked_X) ** 2).sum() * k / (k - 1)
  return float(np.clip(share * (1 - share) * total**2 / max(squares, 1e-9), k, total))


class Retrieval:
  """Evaluates a task on new, held-out examples of given lengths and depths; compiles once.

  Args:
    config: the config of the run.
    mesh: the mesh of the parameters.
    task: the kind of example.
    lengths: the tokens of the examples; by default `config.evaluation.lengths`.
    samples: the examples of each length and depth; by default `config.evaluation.samples`.

  Attributes:
    fingerprint: a short hash of all that is read, and of how it is read.

  Raises:
    InputError: a length is too short for the task.
  """

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    task: Task,
    lengths: tuple[int, ...] = (),
    samples: int = 0,
  ):
    e = config.evaluation
    can_fork = mesh.size == 1 and has_one_size(config.model)  # on one device
    self._groups: list[_Group] = []
    for length in lengths or e.lengths:
      check_length(length, task.shortest, "config.evaluation.lengths")
      depths = e.depths if task.facts.depth_of else (0.0,)
      count = samples or e.samples
      self._groups.append(_Group(config, task, length, depths, count, can_fork))
    self._reader = Reader(config, mesh)
    said = (task.fingerprint, config.train.seed, config.model, e, lengths, samples)
    self.fingerprint = digest(map(str, said))

  @property
  def chunks(self) -> int:
    """The chunks of one run, the last value of `advance`."""
    return sum(group.chunks for group in self._groups)

  def run(
    self,
    params: Any,
    variant: Variant = INTACT,
    advance: Advance | None = None,
    kept: Kept | None = None,
  ) -> Recalled:
    """Reads every example and counts the right answers.

    Args:
      params: the parameters of the model, on the mesh of this evaluator.
      variant: the whole memory, or an ablation.
      advance: called after each chunk.
      kept: the file of the progress, to continue from and to save to; for one process only.
    """
    kept = kept or Kept()
    found = kept.load()
    facts: dict[str, Any] = found.facts if found else {"group": 0, "cells": [], "seconds": 0.0}
    cells = [Cell(**cell) for cell in facts["cells"]]
    started = time.perf_counter() - facts["seconds"]
    done = sum(group.chunks for group in self._groups[: facts["group"]])

    def save(group, arrays):
      seconds, listed = time.perf_counter() - started, [dataclasses.asdict(cell) for cell in cells]
      kept.save(arrays, {"group": group, "cells": listed, "seconds": seconds, "done": done})

    for g, group in enumerate(self._groups[facts["group"] :], facts["group"]):
      reading = _GroupReading(self._reader, params, variant, group)
      if found:
        reading.go_on(found.arrays)
        done, found = done + reading.done, None
      for _ in reading:
        done += 1
        if advance is not None:
          reading.wait()
          advance(done, f"{group.length:,} tokens: {reading.tally.text()}")
        if kept.due:
          save(g, reading.kept())
      cells += reading.tally.cells()
    if kept.saves:
      save(len(self._groups), {})
    tokens = sum(group.tokens for group in self._groups)
    return Recalled(tuple(cells), tokens, time.perf_counter() - started)


class _Group:
  """All examples of one length, in lanes."""

  def __init__(
    self,
    config: Config,
    task: Task,
    length: int,
    depths: tuple[float, ...],
    samples: int,
    can_fork: bool,
  ):
    e, seed = config.evaluation, config.train.seed
    self.length, self.depths, self.samples = length, depths, samples
    self.examples = Examples(task, length, depths, samples, seed)
    self.segment_length = config.model.segment_length
    in_lanes = functools.partial(
      EvalLanes,
      bos=task.tokenizer.bos,
      segments=e.segments,
      segment_length=self.segment_length,
    )
    self.trunk: EvalLanes | None = None
    trunk, shared_X = self.examples.trunk(e.segments * self.segment_length)
    if not can_fork or shared_X.sum() - shared_X.max() < FORKS_FROM:
      shared_X = np.zeros_like(shared_X)
    else:
      self.trunk = in_lanes(_Beginning(self.examples, trunk, shared_X.max()), lanes=1)
    self.forks = frozenset(shared_X.tolist()) - {0}
    skip_X = shared_X if self.trunk else None
    self.lanes = in_lanes(self.examples, lanes=e.lanes, skip_X=skip_X)

  @property
  def chunks(self) -> int:
    """The chunks of one run."""
    return len(self.lanes) + (len(self.trunk) if self.trunk else 0)

  @property
  def tokens(self) -> int:
    """The tokens that are read in one run."""
    return self.lanes.predictions + (self.trunk.predictions if self.trunk else 0)

  def asks(self, chunk: dict[str, np.ndarray]) -> bool:
    """Whether a chunk has answer tokens."""
    return bool(self.asked(chunk).any())

  def asked(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
    """Which targets of a chunk belong to an answer, (B, T) bool."""
    document_BS, position_BS = chunk["document_BS"], chunk["position_BS"]
    asked_BSN = np.zeros((*document_BS.shape, self.segment_length), bool)
    for b, s in np.argwhere(
      (document_BS >= 0) & (position_BS + self.segment_length > self.examples.first_asked)
    ):
      start = int(position_BS[b, s])
      asked = self.examples.asked(int(document_BS[b, s]), start, start + self.segment_length)
      asked_BSN[b, s, : len(asked)] = asked
    return asked_BSN.reshape(document_BS.shape[0], -1)


class _Beginning:
  """The beginning of one example, as a single document."""

  def __init__(self, examples: Examples, example: int, tokens: int):
    self._examples, self._example = examples, example
    self.tokens = np.array([tokens])

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop`, (stop - start,) int32."""
    assert document == 0
    return self._examples.read(self._example, start, stop)


class _GroupReading:
  """A pass over a group: first the shared beginning, then each example; yields after each chunk.

  Attributes:
    done: the number of chunks read.
    tally: the counts so far.
  """

  def __init__(self, reader: Reader, params: Any, variant: Variant, group: _Group):
    self._group, self.tally = group, _Tally(group)
    self._forks: dict[int, Any] = {}  # states by the number of tokens read
    self._trunk = (
      reader.read(params, group.trunk, variant, lambda chunk: False) if group.trunk else None
    )
    self._lanes = reader.read(params, group.lanes, variant, group.asks, self._forks)

  @property
  def done(self) -> int:
    return self._lanes.done + (self._trunk.done if self._trunk else 0)

  def wait(self) -> None:
    """Returns when the device has read the last chunk, so that progress is not ahead of it."""
    jax.block_until_ready((self._trunk.state if self._trunk else None, self._lanes.state))

  def __iter__(self) -> Iterator[None]:
    group = self._group
    tokens = group.lanes.segments * group.segment_length  # of a chunk
    if self._trunk:
      for _ in self._trunk:
        read = self._trunk.done * tokens
        if read in group.forks:
          self._forks[read] = jax.device_get(self._trunk.state)
        yield
    for chunk, scores in self._lanes:
      if scores is not None:
        self.tally.add(group.asked(chunk), chunk["document_BS"], np.asarray(scores[1]))
      yield

  def kept(self) -> dict[str, np.ndarray]:
    """All arrays that the rest of the pass depends on, by name."""
    readings = {"lanes": self._lanes} | ({"trunk": self._trunk} if self._trunk else {})
    arrays = {f"{name}.{k}": v for name, r in readings.items() for k, v in r.kept().items()}
    for read, state in self._forks.items():
      arrays |= {f"fork.{read}.{i}": x for i, x in enumerate(jax.tree.leaves(state))}
    return arrays | {"asked": self.tally.asked_X, "right": self.tally.right_X}

  def go_on(self, kept: Mapping[str, np.ndarray]) -> None:
    """Continues from the place of the pass that gave `kept`."""
    below = lambda start: {
      name.removeprefix(start): x for name, x in kept.items() if name.startswith(start)
    }
    self._lanes.go_on(below("lanes."))
    if self._trunk:
      self._trunk.go_on(below("trunk."))
      structure = jax.tree.structure(self._trunk.state)
      for read in self._group.forks:
        if leaves := below(f"fork.{read}."):
          in_order = [leaves[str(i)] for i in range(len(leaves))]
          self._forks[read] = jax.tree.unflatten(structure, in_order)
    self.tally.asked_X, self.tally.right_X = kept["asked"].copy(), kept["right"].copy()


class _Tally:
  """The counts of every example of a group."""

  def __init__(self, group: _Group):
    self._group = group
    self.asked_X = np.zeros(len(group.depths) * group.samples, np.int64)
    self.right_X = np.zeros_like(self.asked_X)

  def add(self, asked_BT: np.ndarray, document_BS: np.ndarray, right_BT: np.ndarray) -> None:
    """Counts the answers of a chunk."""
    N = asked_BT.shape[1] // document_BS.shape[1]
    document_BT = np.repeat(document_BS, N, axis=1)
    np.add.at(self.asked_X, document_BT[asked_BT], 1)
    np.add.at(self.right_X, document_BT[asked_BT & right_BT], 1)

  def text(self) -> str:
    """The accuracy so far, for a progress bar."""
    asked = int(self.asked_X.sum())
    return f"{self.right_X.sum() / asked:.0%} of answer tokens right" if asked else ""

  def cells(self) -> list[Cell]:
    """One cell for each depth."""
    samples = self._group.samples
    found = []
    for i, depth in enumerate(self._group.depths):
      asked = self.asked_X[i * samples : (i + 1) * samples]
      right = self.right_X[i * samples : (i + 1) * samples]
      exact = int((right == asked).sum())
      counts = exact, int(asked.sum()), int(right.sum()), independent(asked, right)
      found.append(Cell(self._group.length, depth, samples, *counts))
    return found
