"""Goodput: the share of the wall time of a run that went into steps that count.

The rest went into the start, compilation, waiting for data, saves, evaluations, and lost steps:
steps that were skipped, or taken again after a process was killed.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

KINDS = ("start", "compile", "input", "save", "evaluation", "lost")
KIND = "goodput"  # of the lines in metrics.jsonl


class Goodput:
  """Sums the seconds of one process.

  Args:
    lost: the seconds of steps that an earlier process took after the checkpoint it continues from.
  """

  def __init__(self, lost: float = 0.0):
    self._began = time.perf_counter()
    self._seconds = dict.fromkeys(KINDS, 0.0) | {"lost": lost}
    self._before = lost  # seconds that are not of this process

  @contextlib.contextmanager
  def spent(self, kind: str) -> Iterator[None]:
    """Counts the time of the body as one of `KINDS`."""
    since = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[kind] += time.perf_counter() - since

  def add(self, kind: str, seconds: float) -> None:
    """Counts so many seconds as one of `KINDS`."""
    self._seconds[kind] += seconds

  def started(self) -> None:
    """All time so far that is not counted yet was the start."""
    self._seconds["start"] = time.perf_counter() - self._began - self._counted()

  def include(self, other: "Goodput") -> None:
    """Takes over the time that another one has counted, from its beginning on."""
    self._began = other._began
    for kind, seconds in other._seconds.items():
      self._seconds[kind] += seconds

  def values(self) -> dict[str, float]:
    """The seconds in all, of steps that count, and of each kind."""
    total = time.perf_counter() - self._began + self._before
    kinds = {kind: round(self._seconds[kind], 3) for kind in KINDS}
    steps = max(0.0, total - sum(kinds.values()))
    return {"seconds": round(total, 3), "steps": round(steps, 3), **kinds}

  def _counted(self) -> float:
    return sum(self._seconds.values()) - self._before


def summary(lines: list[dict[str, Any]]) -> dict[str, float]:
  """The shares of `steps` and of each kind, over all processes of a run; empty without lines.

  Args:
    lines: the lines of `KIND` in the metrics of the run; the last of each session counts.
  """
  last = {line["session"]: line for line in lines}.values()
  total = sum(line["seconds"] for line in last)
  if not total:
    return {}
  return {name: sum(line[name] for line in last) / total for name in ("steps", *KINDS)}


def in_words(shares: dict[str, float]) -> str:
  """The shares in one line: `goodput 91%; compile 5%, start 3%`. Shares below 0.5% are left out."""
  others = sorted(((shares[kind], kind) for kind in KINDS), reverse=True)
  rest = ", ".join(f"{kind} {share:.0%}" for share, kind in others if share >= 0.005)
  return f"goodput {shares['steps']:.0%}" + (f"; {rest}" if rest else "")
