"""`infini-jax report`: writes the runs of several workdirs as one self-contained HTML page."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.buckets import is_url
from infini_jax.config import InputError
from infini_jax.files import write_bytes
from infini_jax.html import BEGINS, code, document, heading
from infini_jax.paths import file_to_write
from infini_jax.report import tables
from infini_jax.report.curves import training
from infini_jax.report.evaluations import evaluations
from infini_jax.report.headline import headline
from infini_jax.report.runs import RunFiles, read_runs, shown

NAMED = 4  # the most runs that the title names


def report(workdirs: Sequence[str], out: str | None, console: Console) -> Path:
  """Writes a report.

  Args:
    workdirs: the folders of the runs, which are shown side by side.
    out: the file; None: report.html in the workdir, or next to several workdirs.
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
    for name in run.evaluations:  # each alone, so that an error names its own file
      alone = dataclasses.replace(run, evaluations={name: run.evaluations[name]})
      with shown(run, name):
        headline([alone])
        evaluations([alone], run.path, drawn=False)
        _commands([alone])
  whose = str(workdirs[0]).rstrip("/")
  folder = runs[0].path if len(runs) == 1 else runs[0].path.parent
  if is_url(whose):
    out = out or f"{whose if len(runs) == 1 else whose.rpartition('/')[0]}/report.html"
  file = file_to_write(out or folder / "report.html", "--out", begins=BEGINS)
  whole = page(runs, file.parent)
  try:
    write_bytes(file, whole.encode("utf-8", "replace"))
  except OSError as error:
    raise InputError(f"--out={file}: cannot be written ({error.strerror}); give another") from None
  console.print(f"wrote {file} ({file.stat().st_size / 1024:,.0f} KiB)", highlight=False)
  return file


def page(runs: list[RunFiles], folder: Path) -> str:
  """The whole page as HTML. Its links are relative to `folder`."""
  several = len(runs) > 1
  sections = [("Differences", tables.differences(runs))] if several else []
  sections += [("Headline figures", headline(runs)), ("Training", training(runs))]
  sections.append(("Evaluations", evaluations(runs, folder)))
  sections.append(("Config", tables.configs(runs)))
  if any(run.evaluations for run in runs):
    sections.append(("Commands and environment", _commands(runs)))
  now = datetime.datetime.now(datetime.UTC)
  what = " and ".join(dict.fromkeys(run.system for run in runs))
  below = f"{', '.join(run.name for run in runs)}: {what}; written {now:%Y-%m-%d %H:%M} UTC"
  return document(_title(runs), below, sections, several)


def _title(runs: list[RunFiles]) -> str:
  names = ", ".join(run.name for run in runs[:NAMED])
  return names if len(runs) <= NAMED else f"{len(runs)} runs: {names}, ..."


def _commands(runs: list[RunFiles]) -> str:
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
