"""Figures as text: no more digits than the samples support."""

import math

from infini_jax.evaluation.perplexity import paired
from infini_jax.evaluation.retrieval import wilson
from infini_jax.report.figures import changed, measured, said, supported


def test_a_figure_has_the_digits_of_its_interval():
  for value, bounds, figure, note in (
    (66.946, (45.58, 102.2), "67", "46 to 102"),
    (0.85, wilson(17, 20), "0.85", "0.64 to 0.95"),
    (0.9731, (0.961, 0.981), "0.973", "0.961 to 0.981"),
    (2.20763, (2.18, 2.24), "2.21", "2.18 to 2.24"),
  ):
    cell = measured(value, bounds)
    assert (cell.figure, cell.note) == (figure, note) and float(cell.exact) == value
  assert measured(66.946, None).figure == "66.9", "not known: three digits"
  assert measured(math.nan, (math.nan, math.nan)).figure == "nan"


def test_the_last_digit_is_a_small_part_of_the_interval(rng):
  for half in 10 ** rng.uniform(-6, 0, 200):
    step = 10.0 ** -supported((1 - half, 1 + half))
    assert half / 31 < step <= half or step == 1


def test_three_digits_of_what_has_no_interval():
  assert [said(x) for x in (3.5, 0.012345, 12345.6, 0.0, 7, 1e9, math.inf)] == [
    "3.50", "0.0123", "12,346", "0", "7", "1e+09", "inf"
  ]  # fmt: skip


def test_a_change_is_measured_on_the_same_documents(rng):
  """The difference of two readings is known better than each of them."""
  counts = rng.integers(100, 1000, 12)
  before = [(f"{i}", int(n), float(n * rng.uniform(2, 6))) for i, n in enumerate(counts)]
  after = [(name, n, nats + n * (0.1 + rng.normal() * 1e-3)) for name, n, nats in before]
  low, high = paired(after, before)
  assert low < math.exp(0.1) - 1 < high or high - low < 5e-3
  total = lambda docs: {
    "perplexity": math.exp(sum(d[2] for d in docs) / sum(d[1] for d in docs)), "per_document": docs
  }  # fmt: skip
  cell = changed(total(after), total(before))
  assert cell.figure.startswith("+10.") and cell.figure.endswith("%")
  assert paired(after[1:], before) is None and paired(after[:1], before[:1]) is None
  other = [("x", *after[0][1:]), *after[1:]]
  assert paired(other, before) is None
