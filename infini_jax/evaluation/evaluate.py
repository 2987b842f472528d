"""Evaluates a run: the figures of each task, knocked out too, and the gates.

What is found lies in `WORKDIR/evaluation/TASK/`: `results.json`, and the pictures beside it.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax import plan
from infini_jax.config import Config
from infini_jax.evaluation import gates as gates_lib
from infini_jax.evaluation.knock_out import INTACT
from infini_jax.evaluation.tasks import KINDS, Job, jobs_of, open_task
from infini_jax.models import abstract_params
from infini_jax.parallel import check_divisible, distributed, make_mesh
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir


def evaluate(
  config: Config,
  path: str,
  console: Console,
  step: int | None = None,
  tasks: Sequence[str] = (),
  command: str | None = None,
) -> dict[str, dict[str, Any]]:
  """Evaluates a checkpoint and writes `WORKDIR/evaluation/TASK/` for every task.

  Args:
    config: the run's; `config.evaluation` and `config.mesh` may differ from training.
    path: the workdir.
    console: where progress and the tables go.
    step: which checkpoint; the newest by default.
    tasks: of `NAMES`; by default `config.evaluation.task`, else what the run is trained on, and
      the gates.
    command: what was typed, to be written down.

  Returns:
    What the `results.json` of each task holds.

  Raises:
    InputError: no run or checkpoint there, or another config's; a task that there is not, or that
      the run cannot be asked; an empty split; lengths too short.
  """
  workdir = Workdir(path)
  workdir.config()  # there must be a run
  workdir.check(config)
  jobs = jobs_of(config, tasks)
  with distributed.first_alone("inputs"):
    sources = {job.task: open_task(config, path, console, job.task) for job in jobs if job.task}
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  everything: dict[str, dict[str, Any]] = {}
  with jax.set_mesh(mesh):
    evaluators = {task: KINDS[task].evaluator(config, mesh, s) for task, s in sources.items()}
    params, step = Checkpoints(workdir).restore_params(abstract_params(config.model, mesh), step)
    gates_LH = gates_lib.gates(config.model, params)
    about: dict[str, Any] = {
      "step": step,
      "parameters": plan.parameter_count(params),
      **training(workdir.path),
    }
    if gates_LH is not None:
      about["gates"] = {"gates_LH": gates_LH.tolist(), **gates_lib.summary(gates_LH)}
    about["settings"] = {
      "evaluation": dataclasses.asdict(config.evaluation),
      "task": dataclasses.asdict(config.task),
    }
    about |= {"command": command, "environment": _environment()}
    known: dict[tuple[str, str], Any] = {}
    for job in jobs:
      started = time.perf_counter()
      found = _run(job, evaluators.get(job.task), params, known, console)
      about["seconds"] = time.perf_counter() - started
      results = everything[job.name] = _results(job, config, about, found)
      if jax.process_index() == 0:
        folder = workdir.path / "evaluation" / job.name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "results.json"
        file.with_suffix(".tmp").write_text(json.dumps(results, indent=2) + "\n")
        file.with_suffix(".tmp").replace(file)
        _show(job, found, results, config, workdir.path, console)
  return everything


def training(folder: Path) -> dict[str, Any]:
  """What training took: the median speed, and the most bytes of a device."""
  lines = read_metrics(folder)
  speeds = sorted(line["tokens_per_second"] for line in lines)
  return {
    "training_tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
    "training_step_bytes": max((line.get("step_bytes", 0) for line in lines), default=None),
  }


def _run(
  job: Job, evaluator: Any, params: Any, known: dict[tuple[str, str], Any], console: Console
) -> dict[str, Any]:
  """What every variant of a job finds. What is `known` from another job is not read again."""
  for variant in job.variants:
    if (job.task, variant.name) not in known:
      with track(console, f"{job.task}, {variant.name}", evaluator.chunks) as bar:
        known[job.task, variant.name] = evaluator.run(params, variant, advance=bar)
  return {variant.name: known[job.task, variant.name] for variant in job.variants}


def _results(
  job: Job, config: Config, about: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
  """What `results.json` holds."""
  figures = {name: one.to_dict() for name, one in found.items()}
  results: dict[str, Any] = {"task": job.task or job.name}
  if job.task == "perplexity":
    results["split"] = config.evaluation.split
  results |= about
  if figures:
    results |= {"memory": figures.pop(INTACT.name), KINDS[job.task].others: figures}
  return results | {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _environment() -> dict[str, Any]:
  """What computed the figures."""
  versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
  return {
    "python": platform.python_version(),
    **versions,
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processes": jax.process_count(),
  }


def _show(
  job: Job,
  found: dict[str, Any],
  results: dict[str, Any],
  config: Config,
  path: Path,
  console: Console,
) -> None:
  """Draws the pictures of a job, and prints its tables."""
  folder = path / "evaluation" / job.name
  if not job.task:
    gates_lib.draw(np.array(results["gates"]["gates_LH"]), folder / "gates.png")
    console.print(_gates(results, _shown(folder / "gates.png")))
    return
  tables = KINDS[job.task].tables
  pictures = tables.draw(found, results, folder)
  tables.show(found, results, config, console)
  console.print(_about(results, path, pictures))
  tables.verdict(found, console)


def _about(results: dict[str, Any], path: Path, pictures: dict[str, Path]) -> Table:
  """What was evaluated, how fast, and where everything lies."""
  table = _table(f"the run, step {results['step']}")
  speed = results["training_tokens_per_second"]
  table.add_row("tokens/s in training", f"{speed:,.0f}" if speed else "")
  if size := results["training_step_bytes"]:
    table.add_row("GiB a device in training", f"{size / 2**30:,.2f}")
  table.add_row("tokens/s in evaluation", f"{results['memory']['tokens_per_second']:,.0f}")
  table.add_row("parameters", f"{results['parameters']:,}")
  table.add_row("checkpoint", _shown(path / "checkpoints" / str(results["step"])))
  for name, file in pictures.items():
    table.add_row(f"picture: {name}", _shown(file))
  return table


def _gates(results: dict[str, Any], picture: str) -> Table:
  """What the gates learned."""
  g, table = results["gates"], _table(f"gates, step {results['step']}")
  heads = f"{g['local_heads']}, {g['mixer_heads']}, {g['memory_heads']}"
  table.add_row("heads: local, mixers, memory", heads)
  table.add_row("gates: least, greatest", f"{g['least']:.3f}, {g['greatest']:.3f}")
  table.add_row("picture: gates", picture)
  return table


def _table(title: str) -> Table:
  table = Table(title=title)
  table.add_column("figure")
  table.add_column("value", justify="right", overflow="fold")
  return table


def _shown(path: Path) -> str:
  return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
