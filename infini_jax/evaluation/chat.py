"""Conversations: how likely the right answers are, and the answers that the model writes itself.

Every answer is scored given all that was said before it. The last answer of each conversation is
also generated, and compared with the right one: exact match and F of the words that both have,
after the normalisation of SQuAD (Rajpurkar et al., arXiv 1606.05250), and F of ROUGE-L.
"""

import collections
import dataclasses
import re
import string
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config, InputError
from infini_jax.data import EvalLanes
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.perplexity import exp
from infini_jax.evaluation.reading import Chunk, Reader
from infini_jax.evaluation.summarization import scorer, seed_of
from infini_jax.inference.engine import Engine
from infini_jax.inference.saved import Run
from infini_jax.inference.session import Session
from infini_jax.tasks.chat import Conversations, Talks

SCORES = ("exact_match", "f1", "rougeL")
SAMPLES = 2000  # resamples of the conversations for an interval
Advance = Callable[[int, str], None]  # called with the pieces of work done, and a text


class Answer(NamedTuple):
  """A conversation: what the model wrote, and the right answer; scores from 0 to 1."""

  name: str
  written: str
  reference: str
  exact_match: float
  f1: float
  rougeL: float
  tokens: int  # of all answers in the conversation
  nats: float  # minus their log-likelihood


@dataclasses.dataclass(frozen=True)
class Answered:
  """The result of one run of the evaluation."""

  answers: tuple[Answer, ...]
  about: dict[str, int]  # what was read of the corpus
  read: int  # tokens
  seconds: float

  def mean(self, score: str) -> tuple[float, tuple[float, float]]:
    """The mean of a score over conversations, 0 to 1, and its 95% interval."""
    values = np.array([getattr(answer, score) for answer in self.answers], np.float64)
    return float(values.mean()), bootstrap(values, np.ones_like(values))

  @property
  def log_likelihood(self) -> tuple[float, tuple[float, float]]:
    """Nats of each token of the right answers, at most 0, and the 95% interval."""
    nats, tokens = np.array([(-answer.nats, answer.tokens) for answer in self.answers]).T
    return float(nats.sum() / tokens.sum()), bootstrap(nats, tokens)

  @property
  def summary(self) -> str:
    """The scores in one line."""
    scores = ", ".join(f"{name} {self.mean(name)[0]:.3f}" for name in SCORES)
    return f"{scores}, log-likelihood {self.log_likelihood[0]:.3f} a token"

  def to_dict(self) -> dict[str, Any]:
    """The scores for JSON; the texts are in `predictions.jsonl`."""
    found: dict[str, Any] = {}
    for name, (mean, interval) in {
      **{name: self.mean(name) for name in SCORES},
      "log_likelihood": self.log_likelihood,
    }.items():
      found |= {name: mean, f"{name}_interval": interval}
    return found | {
      "answer_perplexity": exp(-found["log_likelihood"]),
      **self.about,
      "tokens": self.read,
      "tokens_per_second": self.read / self.seconds,
    }


def bootstrap(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
  """The 95% interval of sum(values) / sum(weights) over resampled conversations.

  Args:
    values: (n,) a sum for each conversation.
    weights: (n,) what it is divided by.
  """
  n, rng = len(values), np.random.default_rng(0)
  ratios = []
  for _ in range(SAMPLES):
    some = rng.integers(0, n, n)
    ratios.append(values[some].sum() / weights[some].sum())
  low, high = np.quantile(ratios, (0.025, 0.975))
  return float(low), float(high)


def normalised(text: str) -> list[str]:
  """The words of an answer as SQuAD counts them: lower case, without punctuation and articles."""
  plain = "".join(c for c in text.lower() if c not in string.punctuation)
  return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def shared_words(written: str, reference: str) -> float:
  """F of the words that both texts have, each as often as in both, 0 to 1."""
  one, other = normalised(written), normalised(reference)
  if not one or not other:
    return float(one == other)
  same = sum((collections.Counter(one) & collections.Counter(other)).values())
  return 2 * same / (len(one) + len(other))


class Likelihoods(NamedTuple):
  """The loss of the right answers; the arrays have an entry for each conversation."""

  tokens_D: np.ndarray
  nats_D: np.ndarray
  right: int  # tokens that were the likeliest

  @property
  def summary(self) -> str:
    """The perplexity in one line."""
    return f"perplexity of answers {exp(self.nats_D.sum() / self.tokens_D.sum()):.3f}"

  def to_dict(self) -> dict[str, Any]:
    """The figures for the metrics."""
    tokens, nats = int(self.tokens_D.sum()), float(self.nats_D.sum())
    return {
      "answer_perplexity": exp(nats / tokens),
      "answer_accuracy": self.right / tokens,
      "tokens": tokens,
      "nats": nats,
    }


class Likelihood:
  """The loss of the answers of some conversations; compiles once.

  Args:
    config: the config of the run.
    mesh: the mesh.
    talks: the conversations.
    count: read only this many, from the first on; 0: all.
  """

  def __init__(self, config: Config, mesh: Mesh, talks: Talks, count: int = 0):
    e, self._talks, self._N = config.evaluation, talks, config.model.segment_length
    self._lanes = EvalLanes(
      talks,
      bos=talks.first_D,
      lanes=e.lanes,
      segments=e.segments,
      segment_length=self._N,
      max_documents=count,
    )
    self._count = min(len(talks), count or len(talks))
    self._reader = Reader(config, mesh)
    self.predictions = self._lanes.predictions

  def __len__(self) -> int:
    """The number of chunks."""
    return len(self._lanes)

  def run(
    self, params: Any, variant: Variant = INTACT, advance: Advance | None = None
  ) -> Likelihoods:
    """Reads every conversation once."""
    tokens_D, nats_D, right = np.zeros(self._count, np.int64), np.zeros(self._count), 0
    asks = lambda chunk: bool(self._said(chunk).any())
    read = self._reader.read(params, self._lanes, variant, asks)
    for done, (chunk, scores) in enumerate(read, 1):
      if scores is not None:
        said_BT = self._said(chunk)
        document_BT = np.repeat(chunk["document_BS"], self._N, axis=1)
        nll_BT, right_BT = (np.asarray(x, np.float64) for x in scores)
        np.add.at(tokens_D, document_BT[said_BT], 1)
        np.add.at(nats_D, document_BT[said_BT], nll_BT[said_BT])
        right += int(right_BT[said_BT].sum())
      if advance is not None:
        advance(done, "likelihood of answers")
    return Likelihoods(tokens_D, nats_D, right)

  def _said(self, chunk: Chunk) -> np.ndarray:
    """Which targets the assistant says, (B, T) bool."""
    said_BT = np.zeros_like(chunk["mask_BT"])
    for lane, documents in enumerate(chunk["document_BS"]):
      for segment, document in enumerate(documents.tolist()):
        if document >= 0:
          start, at = int(chunk["position_BS"][lane, segment]), segment * self._N
          said = self._talks.said(document, start, start + self._N)
          said_BT[lane, at : at + len(said)] = said
    return said_BT & chunk["mask_BT"]


class Answering:
  """Scores and writes the answers of a split, with `evaluation.lanes` conversations in parallel.

  In the ablation "empty", an answer is written from the open segment of its question alone.

  Raises:
    InputError: the split has no conversations, or a field does not fit.
  """

  def __init__(self, config: Config, mesh: Mesh, source: Conversations):
    e = config.evaluation
    wrong = [f"knock_out={name!r}" for name in e.knock_out if name != "empty"]
    wrong += [f"{f}={getattr(e, f)!r}" for f in ("document", "max_tokens") if getattr(e, f)]
    if wrong:
      raise InputError(
        f"config.evaluation.{wrong[0]} with --task=chat: conversations are read whole, and what is "
        f"written is read too; leave it out (of knock_out leave 'empty')"
      )
    self._config, self._source, self._talks = config, source, source.split(e.split)
    count = min(len(self._talks), e.max_documents or len(self._talks))
    self._likelihood = Likelihood(config, mesh, self._talks, count)
    # Conversations of similar length together, because a lane that has ended waits for the others.
    order = np.argsort(-self._talks.tokens[:count], kind="stable")
    self._batches = [order[i : i + e.lanes].tolist() for i in range(0, count, e.lanes)]

  @property
  def chunks(self) -> int:
    """The pieces of work, the last value of `advance`."""
    return len(self._likelihood) + len(self._batches)

  def run(self, params: Any, variant: Variant = INTACT, advance: Advance | None = None) -> Answered:
    """Scores every answer, and writes the last one of each conversation.

    Args:
      params: the parameters of the model.
      variant: the whole memory, or the memory held empty.
      advance: called with the pieces of work done.
    """
    started, scores_of = time.perf_counter(), scorer()
    told = self._likelihood.run(params, variant, advance)
    run = Run(Engine(self._config, params), self._source.tokenizer)
    done: dict[int, Answer] = {}
    for number, batch in enumerate(self._batches, 1):
      for document, written, reference in self._write(run, batch, variant):
        done[document] = Answer(
          self._talks.names[document],
          written,
          reference,
          float(normalised(written) == normalised(reference)),
          shared_words(written, reference),
          scores_of(reference, written)["rougeL"],
          int(told.tokens_D[document]),
          float(told.nats_D[document]),
        )
      if advance is not None:
        advance(len(self._likelihood) + number, f"{len(done):,} answers written")
    answers = tuple(done[document] for document in sorted(done))
    about = dataclasses.asdict(self._talks.counts)
    about = {name: about[name] for name in ("conversations", "cut", "left_out", "bad")}
    read = self._likelihood.predictions
    return Answered(answers, about | {"asked": len(answers)}, read, time.perf_counter() - started)

  def _write(
    self, run: Run, batch: Sequence[int], variant: Variant
  ) -> Iterator[tuple[int, str, str]]:
    """For each conversation: its number, the answer that the model writes, and the right one."""
    e, tokenizer, end = self._config.evaluation, run.tokenizer, self._source.chat.end
    N = self._config.model.segment_length
    prompts: list[np.ndarray] = []
    seeds: list[int] = []
    references: list[str] = []
    for document in batch:
      prompt, answer = self._talks.last(document)
      closed = (len(prompt) - 1) // N * N  # tokens of closed segments, only in the memory
      prompts.append(prompt[closed * variant.empty :])
      seeds.append(seed_of(self._config.train.seed, prompt))
      references.append(tokenizer.decode(answer[:-1]).strip())
    seeds += seeds[-1:] * (e.lanes - len(batch))
    prompts += prompts[-1:] * (e.lanes - len(batch))  # the same lanes in all batches, for the mesh
    session = Session(run, e.lanes, begin=False)
    texts = [[ids] for ids in prompts]
    session.read(texts if e.lanes > 1 else texts[0], marked=True)
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(batch)
    how: dict[str, Any] = {"temperature": e.temperature, "top_p": e.top_p}
    for piece in session.generate(e.summary_length, ends=(end,), seed=seeds, **how):
      written[piece.lane].append(piece.token)
      if piece.end and piece.lane < len(batch):
        ended[piece.lane] = True
        if all(ended):
          break
    marks = {end, tokenizer.eos}
    for document, own, reference in zip(batch, written, references, strict=False):
      yield document, tokenizer.decode([t for t in own if t not in marks]).strip(), reference
