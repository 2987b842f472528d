"""Published long-context tasks: each sample is streamed, an answer is written, and it is scored.

The scores are those of the benchmarks: `published_scores`. Answers are greedy, as they are there.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config, InputError
from infini_jax.data.sources.published import Sample
from infini_jax.evaluation.answers import write
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.published_scores import cleaned, score
from infini_jax.inference.engine import Engine
from infini_jax.inference.saved import OpenedRun
from infini_jax.models.states import held_L
from infini_jax.tasks.published import Benchmark

# The most tokens that are written for a task of RULER, by the beginning of its name, as published.
TOKENS = {"niah": 128, "vt": 30, "variable_tracking": 30, "cwe": 120, "common_words": 120}
TOKENS |= {"fwe": 50, "freq_words": 50, "qa_": 32, "qa": 15}  # the last is BABILong
Advance = Callable[[int, str], None]  # called with the batches done, and the average so far


class Answer(NamedTuple):
  """What the model wrote for a sample; the score is from 0 to 1."""

  name: str
  task: str
  length: int
  tokens: int  # of the prompt
  written: str
  reference: str
  score: float


class Cell(NamedTuple):
  """All samples of a task and a length."""

  task: str
  length: int
  samples: int
  score: float  # 0 to 100, rounded to two digits as published
  nulls: int  # samples for which nothing was written


@dataclasses.dataclass(frozen=True)
class Scored:
  """The result of one run of the evaluation."""

  answers: tuple[Answer, ...]
  tokens: int  # tokens read
  seconds: float

  @property
  def cells(self) -> list[Cell]:
    """Every task and length, in the order of the samples."""
    found: dict[tuple[str, int], list[Answer]] = {}
    for answer in self.answers:
      found.setdefault((answer.task, answer.length), []).append(answer)
    return [
      Cell(*cell, len(own), percent(own), sum(not one.written for one in own))
      for cell, own in found.items()
    ]

  def to_dict(self) -> dict[str, Any]:
    """The figures for JSON; the texts are in `predictions.jsonl`."""
    by_length = averages(self.cells)
    found = {"average": mean(list(by_length.values())), **weighted(by_length)}
    return {k: v for k, v in found.items() if v is not None} | {
      "samples": len(self.answers),
      "by_length": {str(length): value for length, value in by_length.items()},
      "grid": [cell._asdict() for cell in self.cells],
      "tokens": self.tokens,
      "tokens_per_second": self.tokens / self.seconds,
    }


def percent(answers: Sequence[Answer]) -> float:
  """The mean score, 0 to 100, rounded to two digits."""
  return round(sum(answer.score for answer in answers) / len(answers) * 100, 2)


def averages(cells: Sequence[Cell]) -> dict[int, float]:
  """For each length the mean over its tasks, each with the same weight; lengths ascend."""
  lengths = sorted({cell.length for cell in cells})
  return {n: mean([cell.score for cell in cells if cell.length == n]) for n in lengths}


def weighted(by_length: dict[int, float]) -> dict[str, float | None]:
  """RULER's weighted averages over lengths: weights that grow, or fall, by one with each length."""
  values, rising = list(by_length.values()), np.arange(1, len(by_length) + 1)
  if len(values) < 2:
    return {}
  of = lambda weights: round(float(np.average(values, weights=weights)), 2)
  return {"weighted_increasing": of(rising), "weighted_decreasing": of(rising[::-1])}


def mean(values: Sequence[float]) -> float:
  """Rounded to two digits."""
  return round(sum(values) / len(values), 2)


def most_tokens(task: str) -> int:
  """The tokens that are written for a task, as published; 0: it is not known."""
  return next((n for name, n in TOKENS.items() if task.startswith(name)), 0)


class Grid:
  """Writes and scores the answers of a benchmark, with `evaluation.lanes` samples in parallel.

  In the ablation "empty", an answer is written from the last, open segment of its prompt alone.

  Raises:
    InputError: a field does not fit.
  """

  def __init__(self, config: Config, mesh: Mesh, dataset: Benchmark):
    e = config.evaluation
    wrong = [f"knock_out={name!r}" for name in e.knock_out if name != "empty"]
    wrong += [f"{f}={getattr(e, f)!r}" for f in ("document", "max_tokens") if getattr(e, f)]
    if e.knock_out and held_L(config.model) is not None:
      wrong.append(f"knock_out={e.knock_out!r}")  # full attention in a pattern would lose it too
    if wrong:
      raise InputError(
        f"config.evaluation.{wrong[0]} with --task={dataset.name}: samples are read whole, and "
        f"their answers too; leave it out (of knock_out leave 'empty', or nothing)"
      )
    self._config, self._dataset = config, dataset

  @property
  def chunks(self) -> int:
    """The batches of one run, the last value of `advance`."""
    lanes = self._config.evaluation.lanes
    return sum(-(-count // lanes) for *_, count in self._dataset.runs)

  def run(self, params: Any, variant: Variant = INTACT, advance: Advance | None = None) -> Scored:
    """Reads every sample, writes an answer, and scores it.

    Args:
      params: the parameters of the model.
      variant: the whole memory, or the memory held empty.
      advance: called with the batches done.
    """
    started, run = (
      time.perf_counter(),
      OpenedRun(Engine(self._config, params), self._dataset.tokenizer),
    )
    answers: list[Answer] = []
    for done, batch in enumerate(self._batches(), 1):
      answers += self._write(run, batch, variant)
      if advance is not None:
        last = batch[0]
        own = [one for one in answers if (one.task, one.length) == (last.task, last.length)]
        advance(done, f"{last.task}, {last.length:,} tokens: {percent(own):.1f}")
    tokens = sum(answer.tokens for answer in answers)
    return Scored(tuple(answers), tokens, time.perf_counter() - started)

  def _batches(self) -> Iterator[list[Sample]]:
    """Samples of the same task and length, at most as many as there are lanes."""
    samples, lanes = self._dataset.samples(), self._config.evaluation.lanes
    for *_, count in self._dataset.runs:
      for first in range(0, count, lanes):
        yield list(islice(samples, min(lanes, count - first)))

  def _write(self, run: OpenedRun, batch: list[Sample], variant: Variant) -> list[Answer]:
    e, prompts = self._config.evaluation, [self._dataset.prompt(sample) for sample in batch]
    most = self._dataset.tokens or most_tokens(batch[0].task) or e.summary_length
    pieces = write(run, e.lanes, prompts, variant, tokens=most, temperature=0.0, top_p=1.0)
    written = ["".join(piece.text for piece in own) for own in pieces]
    return [
      Answer(
        sample.place,
        sample.task,
        sample.length,
        len(ids),
        cleaned(text),
        ", ".join(sample.targets),
        score(sample.task, text, sample.targets, sample.question),
      )
      for sample, ids, text in zip(batch, prompts, written, strict=True)
    ]
