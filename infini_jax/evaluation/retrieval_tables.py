"""The table and heat map of retrieval by length and depth, and what an ablation shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.retrieval import Cell, Recalled, wilson
from infini_jax.tasks.needle_families import IN_FILLER

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

  task, cells = results["task"], next(iter(found.values()))
  lengths = list(dict.fromkeys(cell.length for cell in cells))
  depths = list(dict.fromkeys(cell.depth for cell in cells))
  panels = {}
  for name, those in found.items():
    share = {(c.length, c.depth): measure(task, c) for c in those}
    grid = [[share[length, depth] for length in lengths] for depth in depths]
    panels[f"{asked(results)}: {label_of(name)}"] = grid
  deep = len(depths) > 1
  return plots.heat_map(
    panels,
    [f"{length:,}" for length in lengths],
    [f"{depth:g}" * deep for depth in depths],
    x="tokens",
    y=f"depth of the {'key' if task == 'passkey' else 'needle'}" if deep else "",
    scale="answer tokens right" if task == "recall" else "whole answers right",
  )


def by_length(found: Mapping[str, tuple[int, Sequence[Cell]]], task: str) -> "Figure":
  """The chart of the recalled share by length, at the depth where it is lowest.

  Args:
    found: by the name of a line, its style and its cells.
    task: the task.
  """
  from infini_jax import plots

  worst: dict[str, dict[int, float]] = {}
  for name, (_, cells) in found.items():
    shares: dict[int, list[float]] = {}
    for cell in cells:
      shares.setdefault(cell.length, []).append(measure(task, cell))
    worst[name] = {length: min(those) for length, those in shares.items()}
  lengths = sorted({length for those in worst.values() for length in those})
  lines = [
    plots.Line(name, [lengths.index(n) for n in worst[name]], list(worst[name].values()), style)
    for name, (style, _) in found.items()
  ]
  what = "answer tokens right" if task == "recall" else "whole answers right, worst depth"
  ticks = [f"{length:,}" for length in lengths]
  return plots.line_chart(lines, "tokens", what, ticks=ticks, limits=(-0.03, 1.03), legend=False)


def show(
  found: dict[str, Recalled], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints every length and depth with its 95% interval, with the memory and in ablations."""
  task, family = results["task"], config.needle.family
  title = (
    f"{asked(results)}: {config.evaluation.samples} new examples a line, step {results['step']}"
  )
  table = Table(title=title)
  table.add_column("tokens", justify="right")
  if deep := task == "passkey" or (task == "needle" and family in IN_FILLER):
    table.add_column("depth", justify="right")
  if whole := task != "recall":
    what = "key" if task == "passkey" else "answer"
    table.add_column(f"whole {what} right (95% interval)", justify="right")
  table.add_column("answer tokens right (95% interval)", justify="right")
  for name in found:
    if name != "memory":
      table.add_column(label_of(name), justify="right")
  for i, cell in enumerate(found["memory"].cells):
    row = [f"{cell.length:,}"]
    exact = _share(cell.exact_match, wilson(cell.exact, cell.samples))
    row += [f"{cell.depth:g}"] * deep + [exact] * whole
    row.append(_share(cell.token_accuracy, cell.token_interval))
    out = [f"{measure(task, r.cells[i]):.3f}" for name, r in found.items() if name != "memory"]
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
      f"The memory carries nothing that these examples show: {shares[0]} of answer tokens are "
      f"right with it, {shares[1]} without. Raise config.evaluation.samples to see a small "
      f"difference; docs/memory.md says how to find out why there is none."
    )


def measure(task: str, cell: Cell) -> float:
  """The figure of a task: the exact match, or for recall the token accuracy."""
  return cell.token_accuracy if task == "recall" else cell.exact_match


def asked(results: Mapping[str, Any]) -> str:
  """The task of an evaluation; for needles, also the family."""
  task = results["task"]
  settings = results["settings"]
  hidden = settings.get("needle", settings["task"])  # older results have these fields in `task`
  return f"{task}, {hidden['family']}" if task == "needle" else task


def _interval(recalled: Recalled) -> tuple[float, float]:
  """The 95% interval of the share of right answer tokens, over all lengths and depths."""
  count = sum(c.tokens if c.independent is None else c.independent for c in recalled.cells)
  return wilson(recalled.token_accuracy * count, count)


def _share(share: float, interval: tuple[float, float]) -> str:
  return "{:.3f} ({:.2f} to {:.2f})".format(share, *interval)
