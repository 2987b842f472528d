"""What tables and reports read of the task of an evaluation: its `Facts`, in `results.json`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infini_jax.evaluation.retrieval import Cell, wilson
from infini_jax.tasks import Facts

# By title, the facts of older results, which do not have them; and those of all other titles.
OLDER = {
  "perplexity": Facts("perplexity"),
  "passkey": Facts("exact_match", asked="key", depth_of="key"),
  "recall": Facts("token_accuracy"),
  "needle, common_words": Facts("exact_match"),
  "needle, frequent_words": Facts("exact_match"),
}
OTHER = Facts("exact_match", depth_of="needle")


class Measure(NamedTuple):
  """A share of right answers that a cell has.

  Attributes:
    share: of a cell, 0 to 1.
    interval: its 95% confidence interval.
    words: what it is a share of.
    whole: whether it is of whole answers.
  """

  share: Callable[[Cell], float]
  interval: Callable[[Cell], tuple[float, float]]
  words: str
  whole: bool


MEASURES = {
  "exact_match": Measure(
    lambda cell: cell.exact_match,
    lambda cell: wilson(cell.exact, cell.samples),
    "whole answers right",
    whole=True,
  ),
  "token_accuracy": Measure(
    lambda cell: cell.token_accuracy,
    lambda cell: cell.token_interval,
    "answer tokens right",
    whole=False,
  ),
}


def facts_of(results: Mapping[str, Any]) -> Facts:
  """The facts of the task in the content of a `results.json`."""
  if found := results.get("facts"):
    return Facts(**found)
  title = results["task"]
  if title == "needle":
    settings = results["settings"]
    hidden = settings.get("needle", settings["task"])  # older ones have these fields in `task`
    title = f"needle, {hidden['family']}"
  return OLDER.get(title, OTHER)._replace(title=title)


def measure_of(results: Mapping[str, Any]) -> Measure:
  """The share by which results with cells are compared."""
  return MEASURES[facts_of(results).measure]
