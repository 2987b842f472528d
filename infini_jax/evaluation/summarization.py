"""Summaries of whole documents: each document is read, a summary is generated, and it is scored.

The scores are ROUGE (Lin, 2004) of the library `rouge-score`: F of ROUGE-1, -2 and -L, with
stemming. `overall` is their geometric mean; the figures of Table 4 of arXiv 2404.07143 show that
its "overall" is the same. The log-likelihood is that of the documents' own summaries.
"""

from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.evaluation.answers import (
  ROUGES,
  Advance,
  Answered,
  Answers,
  Figure,
  bootstrap,
  scorer,
)
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.tasks import Pairs


class Summarized(Answered):
  """The result of one run: mean scores are from 0 to 100."""

  MOST: ClassVar[int] = 100

  @property
  def figures(self) -> dict[str, Figure]:
    """The mean scores; `overall`, their geometric mean; and the log-likelihood."""
    rouges_D3 = np.stack([self.values(name) for name in ROUGES], axis=1)
    overall = bootstrap(rouges_D3, lambda some: some.mean(0).prod() ** (1 / len(ROUGES)))
    scores = super().figures
    likelihood = scores.pop("log_likelihood")
    return scores | {"overall": overall, "log_likelihood": likelihood}


class Summarization:
  """Scores and writes the summaries of a split.

  Raises:
    InputError: the split has no summaries, or an ablation does not fit.
  """

  def __init__(self, config: Config, mesh: Mesh, pairs: Pairs):
    e = config.evaluation
    self._told = pairs.split(e.split, e.document, e.max_tokens)
    self._answers = Answers(config, mesh, pairs, self._told, scorer())

  @property
  def chunks(self) -> int:
    """The pieces of work, the last value of `advance`."""
    return self._answers.chunks

  def run(
    self, params: Any, variant: Variant = INTACT, advance: Advance | None = None
  ) -> Summarized:
    """Reads every document, and scores and writes its summary; as `Answers.run`."""
    answers, seconds = self._answers.run(params, variant, advance)
    cut = int(self._told.cut_D[: len(answers)].sum())
    about = {"documents": len(answers), "cut": cut}
    return Summarized(answers, about, sum(answer.tokens for answer in answers), seconds)
