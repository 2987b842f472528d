"""The table and heat map of retrieval by length and depth, and what an ablation shows."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.retrieval import Cell, Recalled, wilson
from infini_jax.tasks.needle_families import IN_FILLER


def draw(found: dict[str, Recalled], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Draws the recalled share by length and depth: panels with the memory and for each ablation."""
  from matplotlib.figure import Figure

  task = results["task"]
  lengths = list(dict.fromkeys(cell.length for cell in found["memory"].cells))
  depths = list(dict.fromkeys(cell.depth for cell in found["memory"].cells))
  height = max(1.8, 0.45 * len(depths) + 1.2)
  figure = Figure(
    figsize=(max(5.5, 0.85 * len(lengths) + 2.5), height * len(found)), layout="constrained"
  )
  panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
  for axes, (name, recalled) in zip(panels, found.items(), strict=True):
    share = {(c.length, c.depth): measure(task, c) for c in recalled.cells}
    grid = [[share[length, depth] for length in lengths] for depth in depths]
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set(title=f"{asked(results)}: {label_of(name)}", xlabel="tokens of the text")
    axes.set_xticks(range(len(lengths)), labels=[f"{length:,}" for length in lengths])
    if len(depths) > 1:
      axes.set_ylabel("depth of the key" if task == "passkey" else "depth of the needle")
      axes.set_yticks(range(len(depths)), labels=[f"{depth:g}" for depth in depths])
    else:
      axes.set_yticks([])
    for y, row in enumerate(grid):
      for x, value in enumerate(row):
        colour = "white" if abs(value - 0.5) > 0.35 else "black"
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
  label = "share of values recalled" if task == "recall" else "share of examples recalled"
  figure.colorbar(image, ax=panels.tolist(), label=label)
  file = folder / f"{task}.png"
  figure.savefig(file, dpi=120)
  return {task: file}


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
      table.add_column(f"ablation: {name}", justify="right")
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
      "Nothing was recalled, with the memory or without: this says nothing of the memory. "
      "docs/memory.md says how to find out why."
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


def asked(results: dict[str, Any]) -> str:
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
