"""A small evaluation during training: documents, summaries, answers, or examples of the task."""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import EvalLanes, Store
from infini_jax.evaluation.chat import Likelihood
from infini_jax.evaluation.knock_out import INTACT
from infini_jax.evaluation.perplexity import Perplexity, exp
from infini_jax.evaluation.reading import Chunk, Reader
from infini_jax.evaluation.retrieval import Retrieval
from infini_jax.tasks import Benchmark, Conversations, Pairs, Source, TaskAndText
from infini_jax.tasks.summarization import Told


class Validation:
  """Compiles once; runs every `config.train.eval_every` steps on `eval_documents` of them."""

  def __init__(self, config: Config, mesh: Mesh, source: Source):
    count = config.train.eval_documents
    self._run: Perplexity | Retrieval | Expected | Likelihood
    if isinstance(source, Store):
      self._run = Perplexity(config, mesh, source.split("validation"), source.tokenizer, count)
    elif isinstance(source, Pairs):
      self._run = Expected(config, mesh, source, count)
    elif isinstance(source, Conversations):
      self._run = Likelihood(config, mesh, source.split("validation"), count)
    else:
      length = config.data.segments * config.model.segment_length
      task = source.task if isinstance(source, TaskAndText) else source
      assert not isinstance(task, Benchmark)  # it is for evaluations alone
      self._run = Retrieval(config, mesh, task, (length,), count)

  def run(self, params: Any, advance: Any = None) -> tuple[str, dict[str, float]]:
    """Evaluates; returns a line of text, and the figures for the metrics."""
    found = self._run.run(params, advance=advance)
    figures = {k: v for k, v in found.to_dict().items() if isinstance(v, int | float)}
    return found.summary, figures


class Expectation(NamedTuple):
  """The loss of the reference summaries."""

  tokens: int  # tokens of the summaries
  nats: float

  @property
  def summary(self) -> str:
    """The perplexity in one line."""
    return f"perplexity of summaries {exp(self.nats / self.tokens):.3f}"

  def to_dict(self) -> dict[str, Any]:
    """The figures for the metrics."""
    return {"summary_perplexity": exp(self.nats / self.tokens), **self._asdict()}


class Expected:
  """The perplexity of reference summaries, each read after its whole document.

  Raises:
    InputError: no validation document has a summary.
  """

  def __init__(self, config: Config, mesh: Mesh, pairs: Pairs, count: int):
    e, self._N = config.evaluation, config.model.segment_length
    self._told = Told(pairs, "validation")
    self._lanes = EvalLanes(
      self._told,
      bos=pairs.tokenizer.bos,
      lanes=e.lanes,
      segments=e.segments,
      segment_length=self._N,
      max_documents=count,
    )
    self._reader = Reader(config, mesh)

  def run(self, params: Any, advance: Any = None) -> Expectation:
    """Reads every pair, and returns the loss of the summaries."""
    tokens, nats = 0, 0.0
    asks = lambda chunk: bool(self._asked(chunk).any())
    read = self._reader.read(params, self._lanes, INTACT, asks)
    for done, (chunk, scores) in enumerate(read):
      if scores is not None:
        asked_BT = self._asked(chunk)
        tokens += int(asked_BT.sum())
        nats += float(np.asarray(scores[0], np.float64)[asked_BT].sum())
      if advance is not None:
        advance(done + 1, "summaries")
    return Expectation(tokens, nats)

  def _asked(self, chunk: Chunk) -> np.ndarray:
    """Which targets belong to a summary, (B, T) bool."""
    first_BS = self._told.first_D[chunk["document_BS"]] - chunk["position_BS"]
    asked_BSN = np.arange(self._N) >= first_BS[:, :, None]
    return asked_BSN.reshape(chunk["mask_BT"].shape) & chunk["mask_BT"]
