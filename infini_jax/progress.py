"""The console: text, tables, and progress as a bar in a terminal, or as lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  MofNCompleteColumn,
  Progress,
  SpinnerColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.table import Table

LINE_SECONDS = 10.0  # without a terminal, the shortest time between two lines
ENDLESS = 1_000_000  # columns of a console that writes to a file
MB = 1_000_000  # bytes


def make_console(stderr: bool = False) -> Console:
  """A console for standard output or standard error. In a file or a pipe, lines are not wrapped.

  Markup is off, because a path may contain [/x].
  """
  stream = sys.stderr if stderr else sys.stdout
  terminal = stream is not None and stream.isatty()
  how: dict[str, Any] = {} if terminal else {"width": ENDLESS, "force_terminal": False}
  return _Console(stderr=stderr, markup=False, emoji=False, **how)


class _Console(Console):
  """A console that does not wrap the title of a table in a file, as rich does."""

  def print(self, *objects: Any, **how: Any) -> None:
    """Prints like `rich.console.Console.print`."""
    if not self.is_terminal:
      for table in _tables(objects):
        table.min_width = max(table.min_width or 0, cell_len(str(table.title or "")))
    super().print(*objects, **how)


def _tables(objects: Any) -> Iterator[Table]:
  for found in objects:
    if isinstance(found, Table):
      yield found
    elif isinstance(found, Columns):
      yield from _tables(found.renderables)


@contextlib.contextmanager
def track(
  console: Console,
  name: str,
  total: int | None = None,
  start: int = 0,
  *,
  in_bytes: bool = False,
) -> Iterator[Callable[..., None]]:
  """Shows the progress of a task. Yields `advance(done, text="")`, which sets the amount done.

  If `done` is None, only the text changes.

  Args:
    console: where the progress is shown.
    name: the name of the task.
    total: the total amount; None: it is not known, and only the time is shown.
    start: the amount that was done before.
    in_bytes: whether the amounts are bytes, shown in larger units.
  """
  if not console.is_terminal:
    yield from _lines(console, name, total, start, in_bytes)
    return
  columns = [SpinnerColumn(), *map(_plain, ("{task.description}", "{task.fields[text]}"))]
  if total is None:
    columns = [*columns, TimeElapsedColumn()]
  else:
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns[2:2] = [BarColumn(), amount, TimeRemainingColumn()]
  with Progress(*columns, console=console) as progress:
    task = progress.add_task(name, total=total, completed=start, text="")
    yield lambda done, text="": progress.update(task, completed=done, text=text)


def _plain(text: str) -> TextColumn:
  return TextColumn(text, markup=False)


def _lines(
  console: Console, name: str, total: int | None, start: int, in_bytes: bool
) -> Iterator[Callable[..., None]]:
  began = last = time.perf_counter()
  if total is None:
    console.print(f"{name} ...", highlight=False)

  def advance(done: int | None, text: str = "") -> None:
    nonlocal last
    now = time.perf_counter()
    early = now - last < LINE_SECONDS
    if total is None or done is None or (early and (in_bytes or done < total)):
      return
    last = now
    left = (now - began) / max(1, done - start) * (total - done)
    if in_bytes:
      console.print(f"{name}: {done / MB:.0f} of {total / MB:.0f} MB, {left:.0f} s to go")
    else:
      console.print(f"{name} {done}/{total}  {_clock(left)} left  {text}", highlight=False)

  yield advance
  if total is None:
    console.print(f"{name}: {time.perf_counter() - began:.1f} s", highlight=False)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
