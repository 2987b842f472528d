"""`infini-jax report`: writes the runs of several workdirs as one self-contained HTML page."""

import dataclasses
import datetime
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from infini_jax.buckets import is_url
from infini_jax.config import InputError
from infini_jax.evaluation.filing import Evaluated
from infini_jax.html import (
  BEGINS,
  code,
  document,
  heading,
  link,
  paragraph,
  picture,
)
from infini_jax.paths import file_to_write
from infini_jax.report import tables
from infini_jax.report.headline import headline
from infini_jax.report.runs import Run, read_runs

LABEL = 40  # characters of a run's name in a picture

# The alternative text of a picture. The tables hold its figures.
PICTURES = {
  "positions": "Line chart of perplexity by position in the document",
  "gates": "Heat map of the gate of every head, by layer",
  "passkey": "Heat map of the keys recalled, by length of the text and depth of the key",
  "needle": "Heat map of the needles recalled, by length of the text and depth of the needle",
  "recall": "Heat map of the values recalled, by length of the text",
  "summaries": "ROUGE-1 of every summary against the length of its document",
}

PAGES = {"text": "Passages of the text, each word coloured by what the memory saved or cost"}


def report(workdirs: Sequence[str], out: str | None, console: Console) -> Path:
  """Writes a report.

  Args:
    workdirs: the folders of the runs, which are shown side by side.
    out: the file; None: report.html in the workdir, or beside several workdirs.
    console: where the name of the file is printed.

  Returns:
    The path of the file.

  Raises:
    InputError: a folder holds no run, or a file cannot be read or written.
  """
  if out is not None:
    file_to_write(out, "--out", begins=BEGINS)
  runs = read_runs(workdirs)
  for run in runs:
    for name in run.evaluations:
      _check(run, name)
  whose = str(workdirs[0]).rstrip("/")
  folder = runs[0].path if len(runs) == 1 else runs[0].path.parent
  if is_url(whose):
    out = out or f"{whose if len(runs) == 1 else whose.rpartition('/')[0]}/report.html"
  file = file_to_write(out or folder / "report.html", "--out", begins=BEGINS)
  whole = page(runs, file.parent)
  try:
    file.write_text(whole, "utf-8", "replace")
  except OSError as error:
    raise InputError(f"--out={file}: cannot be written ({error.strerror}); give another") from None
  console.print(f"wrote {file} ({file.stat().st_size / 1024:,.0f} KiB)", highlight=False)
  return file


def _check(run: Run, name: str) -> None:
  """Checks that an evaluation can be shown.

  Raises:
    InputError: its results.json is not that of an evaluation.
  """
  alone = dataclasses.replace(run, losses=(), evaluations={name: run.evaluations[name]})
  try:
    page([alone], run.path)
  except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
    file = run.path / "evaluation" / name / "results.json"
    why = " ".join(f"{type(error).__name__} {error}".split())
    raise InputError(f"{file}: cannot be shown ({why}); evaluate the task anew") from None


def page(runs: list[Run], folder: Path) -> str:
  """The whole page as HTML. Its links are relative to `folder`."""
  several = len(runs) > 1
  sections = [("Headline figures", headline(runs))]
  if several:
    sections.append(("Training", _losses(runs)))
    column = lambda run: f"<section>{heading(3, run.name)}{_run(run, 4, folder)}</section>"
    columns = "".join(map(column, runs))
    sections.append(("Every run", f'<div class="runs">{columns}</div>'))
  else:
    sections += [("Training", _losses(runs)), ("Evaluations", _run(runs[0], 3, folder))]
  sections.append(("Config", tables.configs(runs)))
  if any(run.evaluations for run in runs):
    sections.append(("Commands and environment", _commands(runs)))
  now = datetime.datetime.now(datetime.UTC)
  below = f"{', '.join(run.name for run in runs)}; written {now:%Y-%m-%d %H:%M} UTC"
  return document(_title(runs), below, sections, several)


def _title(runs: list[Run]) -> str:
  unique = lambda values: ", ".join(dict.fromkeys(values))
  systems = unique(run.system.replace(",", "") for run in runs)
  what = systems if len(runs) < 4 else f"{len(runs)} runs"
  return f"{what}: {unique(run.config.task.name for run in runs)}"


def _run(run: Run, level: int, folder: Path) -> str:
  """All results of one run as HTML. Links to other pages are relative to `folder`."""
  made = _losses([run]) if level > 3 else ""
  if not run.evaluations:
    made += paragraph("Nothing was evaluated yet; infini-jax eval evaluates a run.")
  for name, what in run.names.items():
    results = run.evaluations[name]
    made += heading(level, what, f"step {results['step']:,}")
    made += paragraph(Evaluated.of(results).description) if "protocol" in results else ""
    made += tables.tables_of(results)
    for file in run.pictures(name):
      shows = PICTURES.get(file.stem, f"Picture {file.stem}")
      where = f"{what}; {run.name}, step {results['step']:,}"
      made += picture(file.read_bytes(), f"{shows}; {where}")
    for file in run.pages(name):
      made += link(os.path.relpath(file, folder), PAGES.get(file.stem, file.stem))
  return made


def _commands(runs: list[Run]) -> str:
  """The command of every evaluation, and the environments."""
  commands: dict[str, list[dict[str, Any]]] = {}
  for run in runs:
    by_command: dict[Any, list[str]] = {}
    for name, results in run.evaluations.items():
      by_command.setdefault((results.get("command"), results["step"]), []).append(name)
    for names in by_command.values():
      label = ", ".join(names) if len(runs) == 1 else f"{run.name}: {', '.join(names)}"
      commands[label] = [run.evaluations[name] for name in names]
  typed = "".join(
    heading(3, label) + code(results[0].get("command") or "called from Python")
    for label, results in commands.items()
  )
  return typed + tables.environments(commands)


def _losses(runs: list[Run]) -> str:
  """A picture of the training loss of all runs."""
  runs = [run for run in runs if run.losses]
  if not runs:
    return paragraph("No step was logged yet.")
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.5, 3.6), layout="constrained")
  axes = figure.subplots()
  for run in runs:
    steps, losses = (np.array(values) for values in zip(*run.losses, strict=True))
    width = max(1, len(losses) // 40)
    means = np.convolve(losses, np.full(width, 1 / width), "valid")
    (line,) = axes.plot(
      steps[width - 1 :], means, marker="." if len(means) < 40 else "", label=_label(run)
    )
    if width > 1:
      axes.plot(steps, losses, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)
  axes.set(xlabel="step", ylabel="training loss")
  axes.grid(alpha=0.3)
  if len(runs) > 1:
    for text in axes.legend().get_texts():
      text.set_parse_math(False)  # shows a dollar sign in a name as it is
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=120)
  first_to_last = (
    f"{run.name} from {run.losses[0][1]:.3g} at step {run.losses[0][0]:,} to "
    f"{run.losses[-1][1]:.3g} at step {run.losses[-1][0]:,}"
    for run in runs
  )
  caption = "Training loss. A strong line is the mean over a fortieth of the log lines."
  return picture(
    buffer.getvalue(), f"Line chart of training loss: {'; '.join(first_to_last)}", caption
  )


def _label(run: Run) -> str:
  """The name of a run in a picture, cut at its beginning if it is long.

  matplotlib does not show a label that begins with "_", so a space is added in front of it.
  """
  name = run.name if len(run.name) <= LABEL else f"...{run.name[-LABEL:]}"
  return f" {name}" if name.startswith("_") else name
