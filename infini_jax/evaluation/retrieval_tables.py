"""The table and heat map of retrieval by length and depth, and what an ablation shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.facts import facts_of, measure_of
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.retrieval import Cell, Recalled, wilson

if TYPE_CHECKING:
  from infini_jax.plots import Figure


def draw(found: dict[str, Recalled], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Draws the recalled share by length and depth: panels with the memory and for each ablation."""
  from infini_jax import plots

  file = folder / f"{results['task']}.png"
  plots.png(by_depth({name: recalled.cells for name, recalled in found.items()}, results), file)
  return {results["task"]: file}


def by_depth(found: Mapping[str, Sequence[Cell]], results: Mapping[str, Any]) -> "Figure":
  """The heat map of the recalled share by length and depth, with a panel for each variant."""
  from infini_jax import plots

  facts, measure, cells = facts_of(results), measure_of(results), next(iter(found.values()))
  lengths = list(dict.fromkeys(cell.length for cell in cells))
  depths = list(dict.fromkeys(cell.depth for cell in cells))
  panels = {}
  for name, those in found.items():
    share = {(c.length, c.depth): measure.share(c) for c in those}
    grid = [[share[length, depth] for length in lengths] for depth in depths]
    panels[f"{facts.title}: {label_of(name)}"] = grid
  deep = len(depths) > 1
  return plots.heat_map(
    panels,
    [f"{length:,}" for length in lengths],
    [f"{depth:g}" * deep for depth in depths],
    x="tokens",
    y=f"depth of the {facts.depth_of}" if deep else "",
    scale=measure.words,
  )


def by_length(
  found: Mapping[str, tuple[int, Sequence[Cell]]], results: Mapping[str, Any]
) -> "Figure":
  """The chart of the recalled share by length, at the depth where it is lowest.

  Args:
    found: by the name of a line, its style and its cells.
    results: one of their results, for the facts of the task.
  """
  from infini_jax import plots

  measure = measure_of(results)
  worst: dict[str, dict[int, float]] = {}
  for name, (_, cells) in found.items():
    shares: dict[int, list[float]] = {}
    for cell in cells:
      shares.setdefault(cell.length, []).append(measure.share(cell))
    worst[name] = {length: min(those) for length, those in shares.items()}
  lengths = sorted({length for those in worst.values() for length in those})
  lines = [
    plots.Line(name, [lengths.index(n) for n in worst[name]], list(worst[name].values()), style)
    for name, (style, _) in found.items()
  ]
  what = measure.words + ", worst depth" * bool(facts_of(results).depth_of)
  ticks = [f"{length:,}" for length in lengths]
  return plots.line_chart(lines, "tokens", what, ticks=ticks, limits=(-0.03, 1.03), legend=False)


def show(
  found: dict[str, Recalled], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints every length and depth with its 95% interval, with the memory and in ablations."""
  facts, measure = facts_of(results), measure_of(results)
  title = f"{facts.title}: {config.evaluation.samples} new examples a line, step {results['step']}"
  table = Table(title=title)
  table.add_column("tokens", justify="right")
  if deep := bool(facts.depth_of):
    table.add_column("depth", justify="right")
  if whole := measure.whole:
    table.add_column(f"whole {facts.asked} right (95% interval)", justify="right")
  table.add_column("answer tokens right (95% interval)", justify="right")
  for name in found:
    if name != "memory":
      table.add_column(label_of(name), justify="right")
  for i, cell in enumerate(found["memory"].cells):
    row = [f"{cell.length:,}"]
    exact = _share(cell.exact_match, wilson(cell.exact, cell.samples))
    row += [f"{cell.depth:g}"] * deep + [exact] * whole
    row.append(_share(cell.token_accuracy, cell.token_interval))
    out = [f"{measure.share(r.cells[i]):.3f}" for name, r in found.items() if name != "memory"]
    table.add_row(*row, *out)
  console.print(table)


def verdict(found: dict[str, Recalled], console: Console) -> None:
  """Prints a line if the memory does not help, or if the figures cannot show it."""
  if "empty" not in found:
    return
  memory, empty = found["memory"], found["empty"]
  if not memory.token_accuracy and not empty.token_accuracy:
    console.print(
      "Nothing was recalled, with the memory or without it: this does not show whether the memory "
      "works. docs/memory.md says how to find out why."
    )
  elif _interval(memory)[0] <= _interval(empty)[1]:
    shares = [
      "{:.1%} ({:.0%} to {:.0%})".format(r.token_accuracy, *_interval(r)) for r in (memory, empty)
    ]
    console.print(
      f"These examples show no effect of the memory: {shares[0]} of answer tokens are "
      f"right with it, {shares[1]} without. Raise config.evaluation.samples to see a small "
      f"difference; docs/memory.md says how to find out why there is none."
    )


def _interval(recalled: Recalled) -> tuple[float, float]:
  """The 95% interval of the share of right answer tokens, over all lengths and depths."""
  count = sum(c.tokens if c.independent is None else c.independent for c in recalled.cells)
  return wilson(recalled.token_accuracy * count, count)


def _share(share: float, interval: tuple[float, float]) -> str:
  return "{:.3f} ({:.2f} to {:.2f})".format(share, *interval)
