"""A small evaluation during training: documents, answers (summaries too), or examples."""

from typing import Any

from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import Store
from infini_jax.evaluation.answers import Likelihood
from infini_jax.evaluation.perplexity import Perplexity
from infini_jax.evaluation.retrieval import Retrieval
from infini_jax.tasks import Benchmark, Conversations, Dataset, Pairs, TaskAndText


class Validation:
  """Compiles once; runs every `config.train.eval_every` steps on `eval_documents` of them."""

  def __init__(self, config: Config, mesh: Mesh, dataset: Dataset):
    count = config.train.eval_documents
    self._run: Perplexity | Retrieval | Likelihood
    if isinstance(dataset, Store):
      self._run = Perplexity(config, mesh, dataset.split("validation"), dataset.tokenizer, count)
    elif isinstance(dataset, Pairs | Conversations):
      self._run = Likelihood(config, mesh, dataset.split("validation"), count)
    else:
      length = config.data.segments * config.model.segment_length
      task = dataset.task if isinstance(dataset, TaskAndText) else dataset
      assert not isinstance(task, Benchmark)  # it is for evaluations alone
      self._run = Retrieval(config, mesh, task, (length,), count)

  def run(self, params: Any, advance: Any = None) -> tuple[str, dict[str, float]]:
    """Evaluates; returns a line of text, and the figures for the metrics."""
    found = self._run.run(params, advance=advance)
    figures = {k: v for k, v in found.to_dict().items() if isinstance(v, int | float)}
    return found.summary, figures
