"""`infini-jax sweep` and `infini-jax compare`: their arguments, and what they do."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from infini_jax.config import InputError, difference, load_config
from infini_jax.files import locked, write_json
from infini_jax.paths import folder_to_write, local
from infini_jax.sweep.grid import Combination, combinations, read_grid, with_values

FILE = "sweep.json"  # in the folder of a sweep: the fields of its grid


def add_sweep(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sweep`."""
  parser.add_argument("config", nargs=1, metavar="CONFIG", help="a Python file, as for train")
  parser.add_argument("--out", required=True, metavar="FOLDER", help="each run has a folder in it")
  parser.add_argument(
    "--grid",
    action="append",
    default=[],
    metavar="FIELD=VALUES",
    help="optimizer.learning_rate=1e-3,3e-3; give it again for the product with another field; "
    "model.width,model.heads=(64,2),(128,4) for fields that change together",
  )
  how = parser.add_mutually_exclusive_group()
  how.add_argument("--print", action="store_true", help="print the commands, and train nothing")
  how.add_argument("--slurm", action="store_true", help="print a script with an array for Slurm")


def add_compare(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `compare`."""
  parser.add_argument("path", nargs="+", metavar="PATH", help="workdirs, or folders of them")
  parser.add_argument(
    "--by",
    action="append",
    metavar="FIGURE",
    help="sort by this figure, such as 'validation perplexity'; give it again for more columns",
  )


def sweep(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  """Trains a config once for each combination of values, and compares the runs.

  Returns:
    The exit status: 0, 1 if a run failed, 75 if one was stopped before its last step.

  Raises:
    InputError: the grid or one of its configs is wrong, or the folder holds another sweep. Nothing
      has been trained then.
  """
  axes = read_grid(args.grid)
  runs = combinations(axes, rest)
  say = lambda line: console.print(line, soft_wrap=True, highlight=False)
  if args.print or args.slurm:
    folder = local(args.out, "--out")
    commands = [[*rest, *run.flags, f"--workdir={folder / run.name}"] for run in runs]
    if args.slurm:
      from infini_jax.sweep.slurm import script

      say(script(commands, str(folder), args.typed).rstrip("\n"))
    else:
      for arguments in commands:
        say(shlex.join(["infini-jax", "train", *arguments]))
    return 0
  from infini_jax.runs.workdir import alone
  from infini_jax.sweep.local import STOPPED, run_all

  folder = folder_to_write(args.out, "--out")
  fields = [field for axis in axes for field in axis.fields]
  _check_free(folder, fields, runs)
  load_config([*rest, *runs[0].flags], say=say)  # a line about fields without effect
  folder.mkdir(parents=True, exist_ok=True)
  with alone(locked(folder), folder):
    write_json(folder / FILE, {"fields": fields, "command": args.typed})
    outcome = run_all(folder, runs, rest, console)
  if begun := [str(folder / run.name) for run in runs if (folder / run.name / "run.json").exists()]:
    _show(begun, [], console)
    say(f"next: infini-jax compare {shlex.quote(args.out)} --by=FIGURE sorts by another figure")
  if outcome.failed:
    say(f"{len(outcome.failed)} of {len(runs)} runs failed: {' '.join(outcome.failed)}")
  if outcome.stopped or outcome.told:
    say("stopped; the same command continues from there")
  return 1 if outcome.failed else STOPPED if outcome.stopped or outcome.told else 0


def compare(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  """Prints a table of runs: in what their configs differ, and their figures, the best first.

  Raises:
    InputError: a folder holds no run, or no run has the figure.
  """
  found = [workdir for path in args.path for workdir in _workdirs(local(path, "PATH"))]
  _show(found, args.by or [], console)


def _show(workdirs: Sequence[str], by: Sequence[str], console: Console) -> None:
  from infini_jax.report.comparison import comparison
  from infini_jax.report.runs import read_runs

  console.print(comparison(read_runs(workdirs), by))


def _workdirs(path: Path) -> list[str]:
  """The runs at a path: itself, or all folders in it that hold a run.

  Raises:
    InputError: there is none.
  """
  if (path / "run.json").is_file():
    return [str(path)]
  found = sorted(file.parent for file in path.glob("*/run.json")) if path.is_dir() else []
  if not found:
    raise InputError(f"{path}: no run here, and none in a folder of it; name a workdir or a sweep")
  return [str(folder) for folder in found]


def _check_free(folder: Path, fields: Sequence[str], runs: Sequence[Combination]) -> None:
  """Checks that a folder is free, or holds this sweep.

  Raises:
    InputError: it holds a run, another sweep, or something else.
  """
  if (folder / "run.json").exists():
    raise InputError(f"--out={folder}: holds a run; choose another folder for the sweep")
  if not folder.is_dir() or not any(folder.iterdir()):
    return
  file = folder / FILE
  if not file.exists():
    raise InputError(f"--out={folder}: holds other files and no {FILE}; choose another folder")
  try:
    before = json.loads(file.read_text())["fields"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{file}: cannot be read ({error}); choose another --out") from None
  if sorted(before) != sorted(fields):
    raise InputError(
      f"--out={folder}: holds a sweep of {', '.join(before)}, not of {', '.join(fields)}: choose "
      f"another folder"
    )
  from infini_jax.runs.workdir import Workdir

  for place in sorted(file.parent for file in folder.glob("*/run.json")):
    there = with_values(fields, Workdir(place).config(), runs[0].config)
    if differs := difference(there, runs[0].config):
      raise InputError(
        f"--out={folder}: holds a sweep with other settings ({differs}): choose another folder, or "
        f"set the field back"
      )
