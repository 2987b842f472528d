"""Progress that a person can see: a bar with the time left, or lines where there is no terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  SpinnerColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

LINE_SECONDS = 10.0  # without a terminal, no more than one line in this time


@contextlib.contextmanager
def track(
  console: Console, name: str, total: int | None = None, start: int = 0
) -> Iterator[Callable[..., None]]:
  """Shows a task. Yields `advance(done, text="")`, to be called with what is done so far.

  With None for `done` only the text changes.

  Args:
    console: where to show it.
    name: what is done.
    total: how much there is; None when it is not known: then only the time is shown.
    start: what was done before.
  """
  if not console.is_terminal:
    yield from _lines(console, name, total, start)
    return
  columns = [SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[text]}")]
  if total is None:
    columns = [*columns, TimeElapsedColumn()]
  else:
    columns[2:2] = [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
  with Progress(*columns, console=console) as progress:
    task = progress.add_task(name, total=total, completed=start, text="")
    yield lambda done, text="": progress.update(task, completed=done, text=text)


def _lines(
  console: Console, name: str, total: int | None, start: int
) -> Iterator[Callable[..., None]]:
  began = last = time.perf_counter()
  if total is None:
    console.print(f"{name} ...", highlight=False)

  def advance(done: int | None, text: str = "") -> None:
    nonlocal last
    now = time.perf_counter()
    if total is None or done is None or (now - last < LINE_SECONDS and done < total):
      return
    last = now
    left = (now - began) / max(1, done - start) * (total - done)
    console.print(f"{name} {done}/{total}  {_clock(left)} left  {text}", highlight=False)

  yield advance
  if total is None:
    console.print(f"{name}: {time.perf_counter() - began:.1f} s", highlight=False)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
