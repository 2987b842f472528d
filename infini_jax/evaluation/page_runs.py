"""What a report is made of: runs, what they logged, and what their evaluations found."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import Config, InputError
from infini_jax.evaluation.evaluate import training
from infini_jax.evaluation.retrieval_tables import asked
from infini_jax.evaluation.tasks import NAMES
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir

SHOWN = 3  # of the texts that an evaluation wrote
NEEDED = ("task", "step", "date", "seconds", "settings", "environment")  # in every results.json


@dataclasses.dataclass(frozen=True)
class Run:
  """One workdir, read whole; no device is touched."""

  name: str
  path: Path
  config: Config
  losses: tuple[tuple[int, float], ...]  # step, training loss
  training: dict[str, Any]  # speed and bytes
  evaluations: dict[str, dict[str, Any]]  # the name of a task: what its results.json holds

  @property
  def system(self) -> str:
    """The memory system in a few words."""
    m = self.config.model
    return f"{m.mixer}, {m.rule}" if m.mixer == "infini" else m.mixer

  def results(self, what: str) -> dict[str, Any] | None:
    """The results on what was `asked`: the task's own, else those of the knock-outs on it."""
    names = [name for name, found in self.evaluations.items() if asked(found) == what]
    own = [name for name in names if name != "knockout"]
    return next((self.evaluations[name] for name in own + names), None)

  @property
  def tasks(self) -> list[str]:
    """What was asked, knock-outs counted under their task."""
    return list(dict.fromkeys(asked(found) for found in self.evaluations.values()))

  @property
  def gates(self) -> dict[str, Any] | None:
    """What the gates learned, as the newest evaluation found them."""
    found = [r for r in self.evaluations.values() if "gates" in r]
    return max(found, key=lambda r: (r["step"], r["date"]))["gates"] if found else None

  def pictures(self, name: str) -> list[Path]:
    """The pictures of an evaluation."""
    return sorted((self.path / "evaluation" / name).glob("*.png"))


def read_runs(paths: Sequence[str]) -> list[Run]:
  """The runs of some workdirs, each once.

  Raises:
    InputError: there is no run, or a file of an evaluation cannot be read.
  """
  workdirs = [Workdir(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
  names = _names([workdir.path for workdir in workdirs])
  return [_read(workdir, names[workdir.path]) for workdir in workdirs]


def _read(workdir: Workdir, name: str) -> Run:
  config = workdir.config()
  losses = ((line["step"], line["loss"]) for line in read_metrics(workdir.path))
  files = (workdir.path / "evaluation").glob("*/results.json")
  evaluations = {file.parent.name: _results(file) for file in sorted(files, key=_place)}
  return Run(name, workdir.path, config, tuple(losses), training(workdir.path), evaluations)


def _results(file: Path) -> dict[str, Any]:
  try:
    results = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{file}: cannot be read ({error}); evaluate the task anew") from None
  for name in NEEDED:
    if not isinstance(results, dict) or name not in results:
      raise InputError(f"{file}: has no {name!r}; evaluate the task anew")
  if (written := file.with_name("predictions.jsonl")).exists():
    results["predictions"] = _first_lines(written)
  return results


def _first_lines(file: Path) -> list[Any]:
  try:
    with open(file, encoding="utf-8") as lines:
      return [json.loads(line) for line in itertools.islice(lines, SHOWN)]
  except (OSError, ValueError) as error:
    raise InputError(f"{file}: cannot be read ({error}); evaluate the task anew") from None


def _place(file: Path) -> tuple[int, str]:
  name = file.parent.name
  task = name.partition("-")[0]  # of needle-single, say
  return (NAMES.index(task) if task in NAMES else len(NAMES)), name


def _names(paths: list[Path]) -> dict[Path, str]:
  """A short name for each: as few last parts of its path as tell them apart."""
  for parts in range(1, 99):
    names = {path: "/".join(path.parts[-parts:]) for path in paths}
    names = {path: os.fsencode(name).decode("utf-8", "replace") for path, name in names.items()}
    if len(set(names.values())) == len(paths):
      break
  return names
