"""Figures as text: with the digits that the number of samples supports, and their intervals."""

import dataclasses
import math
from typing import Any

from infini_jax.evaluation.facts import Measure
from infini_jax.evaluation.perplexity import change, paired
from infini_jax.evaluation.perplexity import interval as of_documents
from infini_jax.evaluation.retrieval import Cell as Recall
from infini_jax.html import Cell


def short(value: float) -> str:
  """A number as a short text for a table."""
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:,.4f}" if abs(value) < 10_000 else f"{value:.4g}"


def said(value: float) -> str:
  """A number whose precision is not known: three significant digits."""
  if isinstance(value, int):
    return f"{value:,}"
  if not math.isfinite(value) or abs(value) >= 1e6:
    return f"{value:.3g}"
  return number(value, 2 - math.floor(math.log10(abs(value)))) if value else "0"


def measured(value: float, bounds: tuple[float, float] | None, note: str | None = None) -> Cell:
  """A figure with the digits that its 95% interval supports.

  Args:
    value: the figure; the page shows all its digits under the pointer.
    bounds: the interval; None if there is none.
    note: the text below the figure; None: the interval.
  """
  exact = f"{value:.6g}"
  if bounds is None or not all(map(math.isfinite, (value, *bounds))) or bounds[0] == bounds[1]:
    return Cell(said(value), note or (interval(bounds, 2) if bounds else ""), exact)
  digits = supported(bounds)
  return Cell(number(value, digits), interval(bounds, digits) if note is None else note, exact)


def supported(bounds: tuple[float, float]) -> int:
  """The decimals that a 95% interval supports: the last is at least a 30th of half of it."""
  half = (bounds[1] - bounds[0]) / 2
  power = math.floor(math.log10(half))
  return max(0, -power + (half / 10**power < 3))


def perplexity(scores: dict[str, Any]) -> Cell:
  """The perplexity per token of some documents, with its interval over documents."""
  return measured(scores["perplexity"], of_documents(scores["per_document"]))


def bits(scores: dict[str, Any]) -> Cell:
  """Bits per byte of some documents."""
  value, bounds = scores["bits_per_byte"], of_documents(scores["per_document"])
  if not bounds or not 0 < bounds[0] < bounds[1] < math.inf:
    return measured(value, None)
  half = math.log(bounds[1] / bounds[0]) / 2 / math.log(scores["perplexity"]) * value
  return measured(value, (value - half, value + half), note="")


def per_word(scores: dict[str, Any]) -> Cell:
  """The perplexity per word of some documents: two digits, since its error grows with the power."""
  value = scores["word_perplexity"]
  rounded = float(f"{value:.2g}")
  return Cell(f"{rounded:,.0f}" if 10 <= value < 1e6 else f"{value:.2g}", "", f"{value:.6g}")


def changed(after: dict[str, Any], before: dict[str, Any]) -> Cell | str:
  """The change of a perplexity in percent, with its interval if the documents are the same ones."""
  more = change(after["perplexity"], before["perplexity"])
  bounds = paired(after["per_document"], before["per_document"])
  if not more:
    return ""
  if not bounds or not all(map(math.isfinite, bounds)) or bounds[0] == bounds[1]:
    return f"{100 * (after['perplexity'] / before['perplexity'] - 1):+.3g}%"
  percent = (100 * bounds[0], 100 * bounds[1])
  digits = supported(percent)
  sign = lambda x: f"{x:+,.{digits}f}%"
  value = 100 * (after["perplexity"] / before["perplexity"] - 1)
  return Cell(sign(value), f"{sign(percent[0])} to {sign(percent[1])}", more)


def recalled(measure: Measure, cell: Recall) -> Cell:
  """The share that is recalled, with its interval."""
  return measured(measure.share(cell), measure.interval(cell))


def recall_of(cell: dict[str, Any]) -> Recall:
  """A cell of results.json as the object of the evaluation."""
  names = (field.name for field in dataclasses.fields(Recall))
  return Recall(**{name: cell[name] for name in names if name in cell})


def interval(bounds: Any, digits: int) -> str:
  """Two bounds as text; empty if there are none."""
  if not bounds:
    return ""
  return " to ".join(number(x, digits) if math.isfinite(x) else f"{x:g}" for x in bounds)


def number(value: float, digits: int) -> str:
  """A number with so many decimals; a large one with three significant digits."""
  return f"{value:,.{max(0, digits)}f}" if abs(value) < 1e6 else f"{value:.3g}"
