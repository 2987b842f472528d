"""The table of a published benchmark, in its layout: rows are tasks, columns are lengths."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.answers_tables import write_predictions
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.published import Cell, Scored, averages, mean, weighted
from infini_jax.files import atomic

TITLES = {"ruler": "RULER", "babilong": "BABILong"}
ORDER = ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe")


def draw(found: dict[str, Scored], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Writes the answers to `predictions.jsonl`, and the table to `table.csv`; no picture."""
  write_predictions(folder, {name: scored.answers for name, scored in found.items()})
  file = folder / "table.csv"
  with atomic(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
    csv.writer(opened, lineterminator="\n").writerows(rows_of(found["memory"].cells))
  return {"table": file}


def show(
  found: dict[str, Scored], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints a table of scores for the whole memory and for each ablation."""
  for name, scored in found.items():
    counts = sorted({cell.samples for cell in scored.cells})
    count = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    title = f"{TITLES[results['task']]}, {label_of(name)}: {count} samples a cell"
    nulls = sum(cell.nulls for cell in scored.cells)
    caption = f"scores of 100; for {nulls:,} samples nothing was written" if nulls else ""
    table = Table(title=f"{title}, step {results['step']}", caption=caption)
    header, *rows = rows_of(scored.cells)
    table.add_column(header[0])
    for column in header[1:]:
      table.add_column(column, justify="right")
    for i, row in enumerate(rows):
      table.add_row(*row, end_section=i == len(rows) - 2)
    console.print(table)


def rows_of(grid: Sequence[Cell]) -> list[list[str]]:
  """The table as text: a header, a row for each task, and the averages."""
  cells = {(cell.task, cell.length): cell.score for cell in grid}
  lengths = sorted({length for _, length in cells})
  tasks = sorted({task for task, _ in cells}, key=_order)
  by_length = averages(grid)
  more = weighted(by_length)
  header = [
    "task",
    *map(shown, lengths),
    "average",
    *(["wAvg. (inc)", "wAvg. (dec)"] if more else []),
  ]
  made = [header]
  for task in tasks:
    own = [cells.get((task, length)) for length in lengths]
    known = [value for value in own if value is not None]
    values = [*own, mean(known), *[None] * len(more)]
    made.append([task, *("" if value is None else f"{value:.2f}" for value in values)])
  last = [*by_length.values(), mean(list(by_length.values())), *more.values()]
  return [*made, ["average", *(f"{value:.2f}" for value in last)]]


def grid_of(found: Mapping[str, Any]) -> list[Cell]:
  """The cells of a benchmark in the results of a run of it."""
  return [Cell(**cell) for cell in found["grid"]]


def shown(length: int) -> str:
  """A length as the benchmarks write it: 4k, 128k."""
  for size, unit in ((1024**2, "M"), (1024, "k")):
    if length and length % size == 0:
      return f"{length // size}{unit}"
  return f"{length:,}" if length else "0k"


def _order(task: str) -> tuple[int, int, str]:
  """RULER's order; tasks with a number by it, all others by name."""
  place = next((i for i, name in enumerate(ORDER) if task.startswith(name)), len(ORDER))
  number = "".join(filter(str.isdecimal, task))
  return place, int(number or 0), task


def verdict(found: dict[str, Scored], console: Console) -> None:
  """Prints a line if the memory does not help."""
  if "empty" not in found:
    return
  memory, empty = (found[name].to_dict()["average"] for name in ("memory", "empty"))
  if memory <= empty:
    console.print(
      f"These samples show no effect of the memory: the average is {memory:.2f} with it, "
      f"and {empty:.2f} from the last segment alone. docs/memory.md says how to find out why."
    )
