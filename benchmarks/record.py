"""The output of every benchmark: one table, and the same figures as JSON with the machine.

from record import Results, spread
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
PLUGINS = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "torch")  # where they are installed


class Results:
  """Rows of figures under named columns; the value of a column is its format, such as ',.1f'."""

  def __init__(self, title: str, columns: dict[str, str]):
    self.title, self.columns = title, columns
    self.rows: list[dict[str, Any]] = []
    self.more: dict[str, Any] = {}  # figures that belong to no row

  def add(self, *values: Any) -> None:
    """A row, in the order of the columns; None is an empty cell."""
    self.rows.append(dict(zip(self.columns, values, strict=True)))

  def show(self, console: Console) -> None:
    """Prints the table."""
    table = Table(title=self.title, title_justify="left")
    for name, form in self.columns.items():
      table.add_column(name, justify="right" if form else "left")
    for row in self.rows:
      table.add_row(*("" if row[n] is None else format(row[n], f) for n, f in self.columns.items()))
    console.print(table)

  def write(self, path: Path | None) -> None:
    """Writes the figures, the command and the machine; without a path nothing."""
    if path is not None:
      about = {"title": self.title, "rows": self.rows, **self.more, **machine()}
      path.write_text(json.dumps(about, indent=2) + "\n")


def machine() -> dict[str, Any]:
  """The command, the date, the machine and the versions."""
  return {
    "command": shlex.join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
    "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    "python": platform.python_version(),
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | _plugins(),
  }


def _plugins() -> dict[str, str]:
  found = {}
  for name in PLUGINS:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def add_json(parser: argparse.ArgumentParser) -> None:
  """The flag for a file of the figures."""
  parser.add_argument("--json", type=Path, help="a file for the same figures, and the machine")


def spread(values: Sequence[float]) -> float:
  """The distance of the quartiles, as a share of the median."""
  if len(values) < 2:
    return 0.0
  first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
  return (third - first) / middle
