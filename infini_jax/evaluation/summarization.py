"""Summaries of whole documents: each document is read, a summary is generated, and it is scored.

The scores are ROUGE (Lin, 2004) of the library `rouge-score`: F of ROUGE-1, -2 and -L, with
stemming. `overall` is their geometric mean; the figures of Table 4 of arXiv 2404.07143 show that
its "overall" is the same.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config, InputError
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.inference.engine import Engine
from infini_jax.inference.saved import Run
from infini_jax.inference.session import Session
from infini_jax.quiet import quiet
from infini_jax.tasks import Pairs

ROUGES = ("rouge1", "rouge2", "rougeL")
Advance = Callable[[int, str], None]  # called with the documents done, and the score so far


class Summary(NamedTuple):
  """The generated summary of a document, and the reference; scores from 0 to 1."""

  name: str
  tokens: int  # tokens of the document that were read
  written: str
  reference: str
  rouge1: float
  rouge2: float
  rougeL: float


@dataclasses.dataclass(frozen=True)
class Summarized:
  """The result of one run of the evaluation."""

  summaries: tuple[Summary, ...]
  tokens: int  # tokens read
  seconds: float
  cut: int = 0  # documents that were not read to their end

  def mean(self, rouge: str) -> float:
    """The mean score over all documents, 0 to 100."""
    return 100 * sum(getattr(s, rouge) for s in self.summaries) / len(self.summaries)

  @property
  def overall(self) -> float:
    """The geometric mean of the three mean scores, 0 to 100."""
    return math.prod(self.mean(rouge) for rouge in ROUGES) ** (1 / len(ROUGES))

  @property
  def summary(self) -> str:
    """The scores in one line."""
    scores = ", ".join(f"{self.mean(rouge):.1f}" for rouge in ROUGES)
    return f"ROUGE-1, -2, -L {scores}; overall {self.overall:.2f}"

  def to_dict(self) -> dict[str, Any]:
    """The scores for JSON; the texts are in `predictions.jsonl`."""
    return {rouge: self.mean(rouge) for rouge in ROUGES} | {
      "overall": self.overall,
      "documents": len(self.summaries),
      "cut": self.cut,
      "tokens": self.tokens,
      "tokens_per_second": self.tokens / self.seconds,
    }


class Summarization:
  """Generates summaries of a split, with `evaluation.lanes` documents in parallel.

  In the ablation "empty", only the last, open segment of a document is read.

  Raises:
    InputError: the split has no summaries, or the ablation is not "empty".
  """

  def __init__(self, config: Config, mesh: Mesh, pairs: Pairs):
    e = config.evaluation
    for name in e.knock_out:
      if name != "empty":
        raise InputError(
          f"config.evaluation.knock_out={name!r} with --task=summarization: what is written next "
          f"is read too; leave 'empty'"
        )
    self._config, self._pairs = config, pairs
    self._documents, self._references = pairs.split(e.split, e.document)
    told = np.flatnonzero(self._references.tokens)[: e.max_documents or None]
    if not len(told):
      raise InputError(f"config.evaluation.split={e.split!r} has no summaries; choose another")
    # Documents of similar length together, because a lane that has ended waits for the others.
    self._order = told[np.argsort(-self._documents.tokens[told], kind="stable")].tolist()

  @property
  def chunks(self) -> int:
    """The number of documents, the last value of `advance`."""
    return len(self._order)

  def run(
    self, params: Any, variant: Variant = INTACT, advance: Advance | None = None
  ) -> Summarized:
    """Reads every document, generates its summary, and scores it.

    Args:
      params: the parameters of the model.
      variant: the whole memory, or the memory held empty.
      advance: called with the number of documents done.
    """
    scores_of, started = scorer(), time.perf_counter()
    run = Run(Engine(self._config, params), self._pairs.tokenizer)
    done: dict[int, Summary] = {}
    for batch in self._batches():
      for document, tokens, written in self._write(run, batch, variant):
        reference = self._text(self._references, document)
        scores = scores_of(reference, written)
        name = self._documents.names[document]
        done[document] = Summary(name, tokens, written, reference, **scores)
      if advance is not None:
        so_far = Summarized(tuple(done.values()), 0, 1.0)
        advance(len(done), f"overall {so_far.overall:.2f}")
    summaries = tuple(done[document] for document in sorted(done))
    read = sum(summary.tokens for summary in summaries)
    cut = sum(done[d].tokens < int(self._documents.tokens[d]) for d in done)
    return Summarized(summaries, read, time.perf_counter() - started, cut)

  def _batches(self) -> Iterator[list[int]]:
    lanes = self._config.evaluation.lanes
    for start in range(0, len(self._order), lanes):
      yield self._order[start : start + lanes]

  def _write(self, run: Run, batch: list[int], variant: Variant) -> Iterator[tuple[int, int, str]]:
    """For each lane: the document, the number of tokens read of it, and the summary."""
    e, tokenizer = self._config.evaluation, self._pairs.tokenizer
    N = self._config.model.segment_length
    prompts, read, seeds = [], [], []
    for document in batch:
      size = int(self._documents.tokens[document])
      ids = self._documents.read(document, 0, min(size, e.max_tokens or size))
      prompt = self._pairs.prompt(ids)
      closed = (len(prompt) - 1) // N * N  # tokens of closed segments, only in the memory
      prompts.append(prompt[closed * variant.empty :])
      read.append(len(ids))
      seeds.append(seed_of(self._config.train.seed, ids))
    seeds += seeds[-1:] * (e.lanes - len(batch))
    prompts += prompts[-1:] * (e.lanes - len(batch))  # the same lanes in all batches, for the mesh
    session = Session(run, e.lanes, begin=False)
    texts = [[ids] for ids in prompts]
    session.read(texts if e.lanes > 1 else texts[0])
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(batch)
    pieces = session.generate(
      e.summary_length, temperature=e.temperature, top_p=e.top_p, seed=seeds
    )
    for piece in pieces:
      if piece.token != tokenizer.eos:
        written[piece.lane].append(piece.token)
      if piece.end and piece.lane < len(batch):
        ended[piece.lane] = True
        if all(ended):
          break
    for document, tokens, own in zip(batch, read, written, strict=False):
      yield document, tokens, tokenizer.decode(own).strip()

  def _text(self, documents: Any, document: int) -> str:
    ids = documents.read(document, 0, int(documents.tokens[document]))
    return self._pairs.tokenizer.decode(ids)


def scorer() -> Callable[[str, str], dict[str, float]]:
  """Returns a function of a reference and a text: F of ROUGE-1, -2 and -L, each from 0 to 1."""
  from rouge_score.rouge_scorer import RougeScorer

  with quiet():
    made = RougeScorer(list(ROUGES), use_stemmer=True)
  return lambda one, other: {k: v.fmeasure for k, v in made.score(one, other).items()}


def seed_of(run: int, ids: np.ndarray) -> int:
  """The seed of a document's draws, from the run and the document only, not from its place."""
  named = f"{run} ".encode() + ids.astype("<i4").tobytes()
  return int.from_bytes(hashlib.blake2b(named, digest_size=4).digest())
