"""Summaries of whole documents: each document is read, a summary is generated, and it is scored.

The scores are ROUGE (Lin, 2004) of the library `rouge-score`: F of ROUGE-1, -2 and -L, with
stemming. `overall` is their geometric mean; the figures of Table 4 of arXiv 2404.07143 show that
its "overall" is the same. The log-likelihood is that of the documents' own summaries.
"""

from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.evaluation.answers import ROUGES, Answered, Answers, Figure, bootstrap, scorer
from infini_jax.tasks import Pairs


class Summarized(Answered):
  """The result of one run: mean scores are from 0 to 100."""

  MOST: ClassVar[int] = 100

  @property
  def figures(self) -> dict[str, Figure]:
    """The mean scores; `overall`, their geometric mean; and the log-likelihood."""
    rouges_D3 = np.stack([self.values(name) for name in ROUGES], axis=1)
    overall = bootstrap(rouges_D3, lambda some: some.mean(1).prod(1) ** (1 / len(ROUGES)))
    scores = super().figures
    likelihood = scores.pop("log_likelihood")
    return scores | {"overall": overall, "log_likelihood": likelihood}


def summarization(config: Config, mesh: Mesh, pairs: Pairs) -> Answers:
  """The evaluator of the summaries of a split.

  Raises:
    InputError: the split has no summaries, or an ablation does not fit.
  """
  e = config.evaluation
  told = pairs.split(e.split, e.document, e.max_tokens)
  about = lambda count: {"documents": count, "cut": int(told.cut_X[:count].sum())}
  return Answers(config, mesh, pairs, told, scorer(), about, Summarized)
