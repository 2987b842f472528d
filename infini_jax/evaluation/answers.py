"""Answers: how likely the right ones are, and those that the model writes itself.

Conversations and summaries are evaluated alike. Every right answer is scored given all that is
before it. The last answer of each document is also written, and compared with the right one.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config, InputError
from infini_jax.data import EvalLanes
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.perplexity import exp
from infini_jax.evaluation.reading import Chunk, Reader
from infini_jax.inference.engine import Engine
from infini_jax.inference.saved import OpenedRun
from infini_jax.inference.session import Session
from infini_jax.inference.writing import Piece
from infini_jax.quiet import quiet
from infini_jax.tasks import Conversations, Pairs
from infini_jax.tasks.chat import WithAnswers

ROUGES = ("rouge1", "rouge2", "rougeL")
SAMPLES = 2000  # resamples of the documents for an interval
AT_ONCE = 100_000  # documents in the resamples that are computed together
Figure = tuple[float, tuple[float, float]]  # a value, and its 95% interval
Advance = Callable[[int, str], None]  # called with the pieces of work done, and a text


class Answer(NamedTuple):
  """What the model wrote after the last question of a document, and the right answer.

  Attributes:
    name: of the document.
    tokens: the tokens before the answer that were read.
    written: the text of the model.
    reference: the right answer.
    scores: by name, each from 0 to 1.
    answer_tokens: the tokens of all right answers in the document.
    nats: minus their log-likelihood.
  """

  name: str
  tokens: int
  written: str
  reference: str
  scores: dict[str, float]
  answer_tokens: int
  nats: float


@dataclasses.dataclass(frozen=True)
class Answered:
  """The result of one run: the last answer of each document; `about` counts what was read."""

  MOST: ClassVar[int] = 1  # of a mean score

  answers: tuple[Answer, ...]
  about: dict[str, int]
  seconds: float

  @property
  def figures(self) -> dict[str, Figure]:
    """The mean of each score over documents, 0 to `MOST`, and the log-likelihood.

    The latter is of each token of the right answers, in nats, at most 0.
    """
    mean = lambda some: some.mean(1)
    scores = {name: bootstrap(self.values(name), mean) for name in self.answers[0].scores}
    told_D2 = np.array([(-answer.nats, answer.answer_tokens) for answer in self.answers])
    return scores | {"log_likelihood": bootstrap(told_D2, lambda two: np.divide(*two.sum(1).T))}

  def values(self, score: str) -> np.ndarray:
    """A score of every document, 0 to `MOST`, (documents,) float64."""
    return self.MOST * np.array([answer.scores[score] for answer in self.answers], np.float64)

  def to_dict(self) -> dict[str, Any]:
    """The figures for JSON; the texts are in `predictions.jsonl`."""
    found: dict[str, Any] = {}
    for name, (value, interval) in self.figures.items():
      found |= {name: value, f"{name}_interval": interval}
    tokens = sum(answer.tokens for answer in self.answers)
    return found | {
      "answer_perplexity": exp(-found["log_likelihood"]),
      **self.about,
      "tokens": tokens,
      "tokens_per_second": tokens / self.seconds,
    }


def bootstrap(values: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Figure:
  """A figure of some documents, and its 95% interval over resampled documents.

  Args:
    values: (n, ...), those of each document.
    figure: the figures (r,) of r lists of documents: of their values (r, n, ...).
  """
  n, rng = len(values), np.random.default_rng(0)
  again: list[float] = []
  while (left := SAMPLES - len(again)) > 0:
    again += figure(values[rng.integers(0, n, (min(left, -(-AT_ONCE // n)), n))]).tolist()
  low, high = np.quantile(again, (0.025, 0.975))
  return float(figure(values[None])[0]), (float(low), float(high))


def scorer() -> Callable[[str, str], dict[str, float]]:
  """Returns a function of a reference and a text: F1 of ROUGE-1, -2 and -L, each from 0 to 1."""
  from rouge_score.rouge_scorer import RougeScorer

  with quiet():
    made = RougeScorer(list(ROUGES), use_stemmer=True)
  return lambda one, other: {k: v.fmeasure for k, v in made.score(one, other).items()}


def seed_of(run: int, ids: np.ndarray) -> int:
  """The seed of a document's draws, from the run and the document only, not from its lane."""
  named = f"{run} ".encode() + ids.astype("<i4").tobytes()
  return int.from_bytes(hashlib.blake2b(named, digest_size=4).digest())


def write(
  run: OpenedRun, lanes: int, prompts: Sequence[np.ndarray], variant: Variant, **how: Any
) -> list[list[Piece]]:
  """What the model writes after each of some prompts.

  Args:
    run: the model.
    lanes: the lanes of the session.
    prompts: the tokens of each, one to `lanes` of them.
    variant: with an empty memory only the last, open segment of a prompt is read.
    **how: arguments of `Session.generate`; `seed` may have one for each prompt.
  """
  N, few = run.engine.segment, lanes - len(prompts)
  read = [[ids[(len(ids) - 1) // N * N * variant.empty :]] for ids in prompts]
  read += read[-1:] * few  # the same lanes in all batches, for the mesh
  if "seed" in how:
    how["seed"] = [*how["seed"], *how["seed"][-1:] * few]
  session = Session(run, lanes, begin=False)
  session.read(read if lanes > 1 else read[0], marked=True)
  written: list[list[Piece]] = [[] for _ in read]
  for piece in session.generate(**how):
    written[piece.lane].append(piece)
    if all(pieces and pieces[-1].end for pieces in written[: len(prompts)]):
      break
  return written[: len(prompts)]


class Likelihoods(NamedTuple):
  """The loss of the right answers; the arrays have an entry for each document."""

  tokens_X: np.ndarray
  nats_X: np.ndarray
  right: int  # tokens that were the likeliest

  @property
  def summary(self) -> str:
    """The perplexity in one line."""
    return f"perplexity of answers {exp(self.nats_X.sum() / self.tokens_X.sum()):.3f}"

  def to_dict(self) -> dict[str, Any]:
    """The figures for the metrics."""
    tokens, nats = int(self.tokens_X.sum()), float(self.nats_X.sum())
    return {
      "answer_perplexity": exp(nats / tokens),
      "answer_accuracy": self.right / tokens,
      "tokens": tokens,
      "nats": nats,
    }


class Likelihood:
  """The loss of the answers in some documents; compiles once.

  Args:
    config: the config of the run.
    mesh: the mesh.
    talks: the documents.
    count: read only this many, from the first on; 0: all.
  """

  def __init__(self, config: Config, mesh: Mesh, talks: WithAnswers, count: int = 0):
    e, self._talks, self._N = config.evaluation, talks, config.model.segment_length
    self._lanes = EvalLanes(
      talks,
      bos=talks.first_X,
      lanes=e.lanes,
      segments=e.segments,
      segment_length=self._N,
      max_documents=count,
    )
    self._count = min(len(talks), count or len(talks))
    self._reader = Reader(config, mesh)

  def __len__(self) -> int:
    """The number of chunks."""
    return len(self._lanes)

  def run(
    self, params: Any, variant: Variant = INTACT, advance: Advance | None = None
  ) -> Likelihoods:
    """Reads every document once."""
    tokens_X, nats_X, right = np.zeros(self._count, np.int64), np.zeros(self._count), 0
    asks = lambda chunk: bool(self._said(chunk).any())
    read = self._reader.read(params, self._lanes, variant, asks)
    for done, (chunk, scores) in enumerate(read, 1):
      if scores is not None:
        said_BT = self._said(chunk)
        document_BT = np.repeat(chunk["document_BS"], self._N, axis=1)
        nll_BT, right_BT = (np.asarray(x, np.float64) for x in scores)
        np.add.at(tokens_X, document_BT[said_BT], 1)
        np.add.at(nats_X, document_BT[said_BT], nll_BT[said_BT])
        right += int(right_BT[said_BT].sum())
      if advance is not None:
        advance(done, "likelihood of answers")
    return Likelihoods(tokens_X, nats_X, right)

  def _said(self, chunk: Chunk) -> np.ndarray:
    """Which targets are of an answer, (B, T) bool."""
    said_BT = np.zeros_like(chunk["mask_BT"])
    for lane, documents in enumerate(chunk["document_BS"]):
      for segment, document in enumerate(documents.tolist()):
        if document >= 0:
          start, at = int(chunk["position_BS"][lane, segment]), segment * self._N
          said = self._talks.said(document, start, start + self._N)
          said_BT[lane, at : at + len(said)] = said
    return said_BT & chunk["mask_BT"]


class Answers:
  """Scores and writes the answers of some documents, `evaluation.lanes` of them in parallel.

  In the ablation "empty", an answer is written from the open segment before it alone.

  Args:
    config: the config of the run.
    mesh: the mesh.
    dataset: has the vocabulary, and the token that ends an answer.
    talks: the documents; the first `evaluation.max_documents` of them are read.
    score: gives the scores of a reference and a text that was written.
    about: gives counts of what is read, from the number of documents.
    kind: the class of the result.

  Raises:
    InputError: another ablation is asked for.
  """

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    dataset: Conversations | Pairs,
    talks: WithAnswers,
    score: Callable[[str, str], dict[str, float]],
    about: Callable[[int], dict[str, int]],
    kind: type[Answered] = Answered,
  ):
    e = config.evaluation
    for name in e.knock_out:
      if name != "empty":
        raise InputError(
          f"config.evaluation.knock_out={name!r}: what is written next is read too; leave 'empty'"
        )
    self._config, self._dataset, self._talks, self._score = config, dataset, talks, score
    count = min(len(talks), e.max_documents or len(talks))
    self._likelihood = Likelihood(config, mesh, talks, count)
    self._about, self._kind = about(count), kind
    # Documents of similar length together, because a lane that has ended waits for the others.
    order = np.argsort(-talks.tokens[:count], kind="stable")
    self._batches = [order[i : i + e.lanes].tolist() for i in range(0, count, e.lanes)]

  @property
  def chunks(self) -> int:
    """The pieces of work, the last value of `advance`."""
    return len(self._likelihood) + len(self._batches)

  def run(self, params: Any, variant: Variant = INTACT, advance: Advance | None = None) -> Answered:
    """Scores every answer, and writes the last one of each document.

    Args:
      params: the parameters of the model.
      variant: the whole memory, or the memory held empty.
      advance: called with the pieces of work done.
    """
    started = time.perf_counter()
    told = self._likelihood.run(params, variant, advance)
    run = OpenedRun(Engine(self._config, params), self._dataset.tokenizer)
    done: dict[int, Answer] = {}
    for number, batch in enumerate(self._batches, 1):
      asked = [self._talks.last(document) for document in batch]
      texts = self._write(run, [prompt for prompt, _ in asked], variant)
      for document, (prompt, answer), written in zip(batch, asked, texts, strict=True):
        reference = run.tokenizer.decode(answer[:-1]).strip()
        done[document] = Answer(
          self._talks.names[document],
          len(prompt[self._talks.own]),
          written,
          reference,
          self._score(reference, written),
          int(told.tokens_X[document]),
          float(told.nats_X[document]),
        )
      if advance is not None:
        advance(len(self._likelihood) + number, f"{len(done):,} answers written")
    answers = tuple(done[document] for document in sorted(done))
    return self._kind(answers, self._about, time.perf_counter() - started)

  def _write(self, run: OpenedRun, prompts: Sequence[np.ndarray], variant: Variant) -> list[str]:
    """The answers after some prompts, without the marks that end them."""
    e, marks = self._config.evaluation, {self._dataset.end, run.tokenizer.eos}
    written = write(
      run,
      e.lanes,
      prompts,
      variant,
      tokens=e.summary_length,
      temperature=e.temperature,
      top_p=e.top_p,
      ends=(self._dataset.end,),
      seed=[seed_of(self._config.train.seed, prompt[self._talks.own]) for prompt in prompts],
    )
    own = ([piece.token for piece in pieces if piece.token not in marks] for pieces in written)
    return [run.tokenizer.decode(tokens).strip() for tokens in own]
