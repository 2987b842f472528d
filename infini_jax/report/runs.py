"""Reads runs for a report: their configs, logged losses, and results of evaluations."""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import Config, InputError
from infini_jax.evaluation import filing
from infini_jax.evaluation.evaluate import trained_text, training
from infini_jax.evaluation.filing import Evaluated, is_averaged, told_apart
from infini_jax.evaluation.tasks import NAMES
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir

SHOWN = 3  # how many of the texts that an evaluation wrote are shown
NEEDED = ("task", "step", "date", "seconds", "settings", "environment")  # keys of results.json


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """The contents of one workdir. Reading it uses no device."""

  name: str
  path: Path
  config: Config
  logged: tuple[dict[str, Any], ...]  # the lines of training steps
  validated: tuple[dict[str, Any], ...]  # the lines of validations
  training: dict[str, Any]  # speed and bytes
  text: str | None  # the fingerprint of text and tokenizer that it was trained on, if it is here
  evaluations: dict[str, dict[str, Any]]  # the contents of results.json, by folder

  @property
  def losses(self) -> tuple[tuple[int, float], ...]:
    """The steps that were logged, and their training losses."""
    return tuple((line["step"], line["loss"]) for line in self.logged)

  @property
  def last(self) -> tuple[int, float] | None:
    """The newest logged step and its loss; steps after the newest checkpoint are not counted."""
    saved = [int(p.name) for p in (self.path / "checkpoints").glob("*") if p.name.isdecimal()]
    kept = [found for found in self.losses if not saved or found[0] <= max(saved)]
    return kept[-1] if kept else None

  @property
  def system(self) -> str:
    """The memory system and its variant in a few words."""
    m = self.config.model
    return ", ".join(filter(None, (m.title, m.memory.label)))

  @property
  def names(self) -> dict[str, str]:
    """A title for every evaluation, by folder: what was asked and read, and how it differs."""
    those = {name: Evaluated.of(found) for name, found in self.evaluations.items()}
    alike: dict[str, dict[str, Evaluated]] = {}
    for name, one in those.items():
      what = f"knockout, {one.asked}" if is_knock_out(name) else one.asked
      alike.setdefault(": ".join(filter(None, [what, one.read])), {})[name] = one
    names = {}
    for what, some in alike.items():
      for name, apart in told_apart(some).items():
        names[name] = ", ".join(filter(None, [what, apart]))
    count = collections.Counter(names.values())
    out = lambda name: f" (ablations: {', '.join(those[name].knock_out) or 'none'})"
    return {name: names[name] + out(name) * (count[names[name]] > 1) for name in those}

  def results(self, key: str, tokenizer: str | None = None) -> dict[str, Any] | None:
    """The results whose `Evaluated.key` is `key`, or None.

    Among several, prefers the newest step, then the last values of the parameters over their
    moving average, then results with ablations, then those of the task itself over those of
    `knockout`.

    Args:
      key: what was asked, read, and how.
      tokenizer: the fingerprint of the tokenizer, "" in results of older versions; None: any.
    """
    found = [(name, r) for name, r in self.evaluations.items() if Evaluated.of(r).key == key]
    found = [one for one in found if tokenizer in (None, one[1].get("tokenizer", ""))]
    plain = lambda name, r: (not is_averaged(r), bool(r.get("knocked_out")), not is_knock_out(name))
    order = lambda one: (one[1]["step"], *plain(*one))
    return max(found, key=order)[1] if found else None

  @property
  def steps(self) -> list[int]:
    """The evaluated steps, ascending."""
    return sorted({results["step"] for results in self.evaluations.values()})

  @property
  def gates(self) -> dict[str, Any] | None:
    """The gates in the newest evaluation that has them, or None."""
    found = [r for r in self.evaluations.values() if "gates" in r]
    return max(found, key=lambda r: (r["step"], r["date"]))["gates"] if found else None

  def pictures(self, name: str) -> list[Path]:
    """The PNG files of an evaluation."""
    return sorted((self.path / "evaluation" / name).glob("*.png"))

  def pages(self, name: str) -> list[Path]:
    """The HTML files of an evaluation."""
    return sorted((self.path / "evaluation" / name).glob("*.html"))


def read_runs(paths: Sequence[str]) -> list[RunFiles]:
  """Reads the runs of some workdirs, each once.

  Raises:
    InputError: a folder holds no run, or a file of an evaluation cannot be read.
  """
  found = (os.path.abspath(Workdir(path).path) for path in paths)
  workdirs = [Workdir(path) for path in dict.fromkeys(found)]
  names = _names([workdir.path for workdir in workdirs])
  return [_read(workdir, names[workdir.path]) for workdir in workdirs]


def _read(workdir: Workdir, name: str) -> RunFiles:
  config = workdir.config()
  train, validation = (tuple(read_metrics(workdir.path, k)) for k in ("train", "validation"))
  root = workdir.path / "evaluation"
  places = sorted((file.parent.relative_to(root) for file in filing.files(root)), key=_place)
  evaluations = {place.as_posix(): _results(root / place / filing.FILE) for place in places}
  about, text = training(workdir.path), trained_text(workdir.path)
  return RunFiles(name, workdir.path, config, train, validation, about, text, evaluations)


def _results(file: Path) -> dict[str, Any]:
  try:
    results = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{file}: cannot be read ({error}); evaluate the task again") from None
  for name in NEEDED:
    if not isinstance(results, dict) or name not in results:
      raise InputError(f"{file}: has no {name!r}; evaluate the task again")
  if (written := file.with_name("predictions.jsonl")).exists():
    results["predictions"] = _first_lines(written)
  return results


def _first_lines(file: Path) -> list[Any]:
  try:
    with open(file, encoding="utf-8") as lines:
      return [json.loads(line) for line in itertools.islice(lines, SHOWN)]
  except (OSError, ValueError) as error:
    raise InputError(f"{file}: cannot be read ({error}); evaluate the task again") from None


@contextlib.contextmanager
def shown(run: RunFiles, name: str) -> Iterator[None]:
  """While an evaluation is shown: what is wrong with its results becomes one line.

  Raises:
    InputError: its results.json is not that of an evaluation.
  """
  try:
    yield
  except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
    file = run.path / "evaluation" / name / filing.FILE
    why = " ".join(f"{type(error).__name__} {error}".split())
    raise InputError(f"{file}: cannot be shown ({why}); evaluate the task again") from None


def is_knock_out(name: str) -> bool:
  """Whether a folder of results belongs to the evaluation `knockout`."""
  return name.partition("/")[0] == "knockout"


def _place(folder: Path) -> tuple[int, str]:
  task = folder.parts[0].partition("-")[0]  # 'needle' of needle-single, for example
  return (NAMES.index(task) if task in NAMES else len(NAMES)), folder.as_posix()


def _names(paths: list[Path]) -> dict[Path, str]:
  """A short name for each path: as few last parts of it as make the names different."""
  for parts in range(1, 99):
    names = {path: "/".join(path.parts[-parts:]) for path in paths}
    names = {path: os.fsencode(name).decode("utf-8", "replace") for path, name in names.items()}
    if len(set(names.values())) == len(paths):
      break
  return names
