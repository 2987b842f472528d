"""Retrieval: what was read once is asked for at the end, however much stood between.

Examples are streamed chunk after chunk with the state carried, so that a million tokens need no
more memory than a thousand. An answer is right where every token of it is likelier than any other,
given those before: so greedy decoding would write it.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import EvalLanes, Examples, Task, check_length
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.reading import Reader

Advance = Callable[[int, str], None]  # told the chunks done, and the accuracy so far


@dataclasses.dataclass(frozen=True)
class Cell:
  """All examples of one length and depth."""

  length: int
  depth: float
  samples: int
  exact: int  # examples whose whole answer is right
  tokens: int  # of all answers
  right: int  # tokens of them that are right
  # Tokens, each right or wrong by itself, that would tell as much; None: these are.
  independent: float | None = dataclasses.field(default=None, compare=False)

  @property
  def exact_match(self) -> float:
    """Share of examples whose whole answer is right."""
    return self.exact / self.samples

  @property
  def token_accuracy(self) -> float:
    """Share of the answers' tokens that are right."""
    return self.right / self.tokens

  @property
  def token_interval(self) -> tuple[float, float]:
    """95% of that share over examples like these."""
    count = self.tokens if self.independent is None else self.independent
    return wilson(self.token_accuracy * count, count)

  def to_dict(self) -> dict[str, Any]:
    """For JSON, with 95% confidence intervals."""
    return dataclasses.asdict(self) | {
      "exact_match": self.exact_match,
      "exact_match_interval": wilson(self.exact, self.samples),
      "token_accuracy": self.token_accuracy,
      "token_accuracy_interval": self.token_interval,
    }


@dataclasses.dataclass(frozen=True)
class Recalled:
  """What one run of an evaluation found."""

  cells: tuple[Cell, ...]
  tokens: int  # read
  seconds: float

  @property
  def exact_match(self) -> float:
    """Over all examples."""
    return sum(c.exact for c in self.cells) / sum(c.samples for c in self.cells)

  @property
  def token_accuracy(self) -> float:
    """Over all tokens of answers."""
    return sum(c.right for c in self.cells) / sum(c.tokens for c in self.cells)

  @property
  def summary(self) -> str:
    """One line."""
    return f"exact match {self.exact_match:.1%}, answer tokens {self.token_accuracy:.1%}"

  def to_dict(self) -> dict[str, Any]:
    """For JSON."""
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


def independent(asked_D: np.ndarray, right_D: np.ndarray) -> float:
  """As how many tokens by themselves those of some examples count (Kish, 1965).

  The tokens of an answer are mostly right together or wrong together. By how far the examples lie
  apart it is told how much; where nothing tells, an example counts as one token.
  """
  k, total = len(asked_D), int(asked_D.sum())
  share = right_D.sum() / total
  if k < 2 or share in (0, 1):
    return k
  squares = ((right_D - share * asked_D) ** 2).sum() * k / (k - 1)
  return float(np.clip(share * (1 - share) * total**2 / max(squares, 1e-9), k, total))


class Retrieval:
  """Evaluates a task on fresh, held-out examples of given lengths and depths; compiles once.

  Args:
    config: of the run.
    mesh: where the parameters lie.
    task: what is asked.
    lengths: tokens of the examples; by default `config.evaluation.lengths`.
    samples: of each length and depth; by default `config.evaluation.samples`.

  Raises:
    InputError: a length too short for the task.
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
    self._groups: list[_Group] = []
    for length in lengths or e.lengths:
      check_length(length, task.shortest, "config.evaluation.lengths")
      depths = e.depths if task.has_depth else (0.0,)
      self._groups.append(_Group(config, task, length, depths, samples or e.samples))
    self._reader = Reader(config, mesh)

  @property
  def chunks(self) -> int:
    """Chunks of one run: what `advance` counts to."""
    return sum(len(group.lanes) for group in self._groups)

  def run(self, params: Any, variant: Variant = INTACT, advance: Advance | None = None) -> Recalled:
    """Reads every example and counts what is right.

    Args:
      params: the model's parameters, on this evaluator's mesh.
      variant: the whole memory, or a knock-out.
      advance: called after each chunk.
    """
    started, done = time.perf_counter(), 0
    cells: list[Cell] = []
    for group in self._groups:
      tally = _Tally(group)
      for chunk, scores in self._reader.read(params, group.lanes, variant, group.asks):
        done += 1
        if scores is not None:
          tally.add(group.asked(chunk), chunk["document_BS"], np.asarray(scores[1]))
        if advance is not None:
          advance(done, f"{group.length:,} tokens: {tally.text()}")
      cells += tally.cells()
    tokens = sum(group.lanes.predictions for group in self._groups)
    return Recalled(tuple(cells), tokens, time.perf_counter() - started)


class _Group:
  """All examples of one length, side by side in the lanes."""

  def __init__(
    self, config: Config, task: Task, length: int, depths: tuple[float, ...], samples: int
  ):
    e, seed = config.evaluation, config.train.seed
    self.length, self.depths, self.samples = length, depths, samples
    self.examples = Examples(task, length, depths, samples, seed)
    self._N = config.model.segment_length
    self.lanes = EvalLanes(
      self.examples,
      bos=task.tokenizer.bos,
      lanes=e.lanes,
      segments=e.segments,
      segment_length=self._N,
    )

  def asks(self, chunk: dict[str, np.ndarray]) -> bool:
    """Whether anything is asked in a chunk."""
    return bool(self.asked(chunk).any())

  def asked(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
    """Which targets of a chunk belong to an answer, (B, T) bool."""
    document_BS, position_BS = chunk["document_BS"], chunk["position_BS"]
    asked_BSN = np.zeros((*document_BS.shape, self._N), bool)
    for b, s in np.argwhere(
      (document_BS >= 0) & (position_BS + self._N > self.examples.first_asked)
    ):
      start = int(position_BS[b, s])
      asked = self.examples.asked(int(document_BS[b, s]), start, start + self._N)
      asked_BSN[b, s, : len(asked)] = asked
    return asked_BSN.reshape(document_BS.shape[0], -1)


class _Tally:
  """Counts of every example of a group."""

  def __init__(self, group: _Group):
    self._group = group
    self._asked_D = np.zeros(len(group.depths) * group.samples, np.int64)
    self._right_D = np.zeros_like(self._asked_D)

  def add(self, asked_BT: np.ndarray, document_BS: np.ndarray, right_BT: np.ndarray) -> None:
    """Counts the answers of a chunk."""
    N = asked_BT.shape[1] // document_BS.shape[1]
    document_BT = np.repeat(document_BS, N, axis=1)
    np.add.at(self._asked_D, document_BT[asked_BT], 1)
    np.add.at(self._right_D, document_BT[asked_BT & right_BT], 1)

  def text(self) -> str:
    """The accuracy so far, for a progress bar."""
    asked = int(self._asked_D.sum())
    return f"{self._right_D.sum() / asked:.0%} of answer tokens right" if asked else ""

  def cells(self) -> list[Cell]:
    """One for each depth."""
    samples = self._group.samples
    found = []
    for i, depth in enumerate(self._group.depths):
      asked = self._asked_D[i * samples : (i + 1) * samples]
      right = self._right_D[i * samples : (i + 1) * samples]
      exact = int((right == asked).sum())
      counts = exact, int(asked.sum()), int(right.sum()), independent(asked, right)
      found.append(Cell(self._group.length, depth, samples, *counts))
    return found
