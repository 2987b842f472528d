"""A small evaluation during training: validation documents, or held-out examples of the task."""

from typing import Any

from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import Pairs, Source, Store
from infini_jax.evaluation.perplexity import Perplexity
from infini_jax.evaluation.retrieval import Retrieval


class Validation:
  """Compiled once; run every `config.train.eval_every` steps on `eval_documents` of them."""

  def __init__(self, config: Config, mesh: Mesh, source: Source):
    count = config.train.eval_documents
    self._run: Perplexity | Retrieval
    if isinstance(source, Store | Pairs):
      store = source.store if isinstance(source, Pairs) else source
      self._run = Perplexity(config, mesh, store.split("validation"), store.tokenizer, count)
    else:
      length = config.data.segments * config.model.segment_length
      self._run = Retrieval(config, mesh, source, (length,), count)

  def run(self, params: Any, advance: Any = None) -> tuple[str, dict[str, float]]:
    """A line for a person, and the figures for the metrics."""
    found = self._run.run(params, advance=advance)
    figures = {k: v for k, v in found.to_dict().items() if isinstance(v, int | float)}
    return found.summary, figures
