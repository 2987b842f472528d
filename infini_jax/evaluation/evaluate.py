"""Evaluates a run: the figures of each task, with the memory and in ablations, and the gates.

`filing` defines the folder of the results: `results.json`, and the pictures next to it.
"""

import datetime
import importlib.metadata
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

from infini_jax import processes
from infini_jax.config import Config, InputError
from infini_jax.data import Store, open_prepared
from infini_jax.data.sources.base import digest
from infini_jax.evaluation import filing
from infini_jax.evaluation import gates as gates_lib
from infini_jax.evaluation.kept import Kept, sums
from infini_jax.evaluation.knock_out import INTACT
from infini_jax.evaluation.tasks import KINDS, Job, chosen, facts_of_job, jobs_of, open_task
from infini_jax.models import abstract_params, costs, machine
from infini_jax.parallel import check_divisible, make_mesh
from infini_jax.paths import folder_to_write
from infini_jax.progress import track
from infini_jax.runs import goodput
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import Benchmark, Conversations, Dataset, Pairs


def evaluate(
  config: Config,
  path: str,
  console: Console,
  step: int | None = None,
  tasks: Sequence[str] = (),
  command: str | None = None,
  ema: bool = False,
) -> dict[str, dict[str, Any]]:
  """Evaluates a checkpoint and writes its results into `WORKDIR/evaluation/`.

  Args:
    config: the config of the run; `config.evaluation` and `config.mesh` may differ from training.
    path: the workdir.
    console: for progress and the tables.
    step: the step of the checkpoint; by default the newest.
    tasks: some of `NAMES`; by default `config.evaluation.task`, else the task of the run, and the
      gates.
    command: the command that was typed, for the results.
    ema: evaluates the moving average of the parameters, not their last values.

  Returns:
    The content of the `results.json` of each task.

  Raises:
    InputError: there is no run or checkpoint, or the run has another config; a task does not exist
      or does not fit the run; a split is empty; lengths are too short.
  """
  workdir = Workdir(folder_to_write(path, "--workdir"))
  workdir.config()  # raises if there is no run
  workdir.check(config, "leave the field out, for an evaluation takes the run's own")
  config = machine.here(config, lambda line: console.print(line, highlight=False, soft_wrap=True))
  jobs = jobs_of(config, tasks)
  with processes.first_alone("inputs"):
    datasets = {job.task: open_task(config, path, console, job.task) for job in jobs if job.task}
    read = {task: chosen(config, dataset) for task, dataset in datasets.items()}
  processes.check_same_inputs(workdir.path, workdir.standing(), datasets.values())
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  everything: dict[str, dict[str, Any]] = {}
  with jax.set_mesh(mesh):
    evaluators = {task: KINDS[task].evaluator(read[task], mesh, s) for task, s in datasets.items()}
    with Checkpoints(workdir) as saved:
      params, step = saved.restore_params(abstract_params(config.model, mesh), step, ema)
      newest = saved.latest() or step
    gates_LH = gates_lib.gates(config.model, params)
    about: dict[str, Any] = {
      "step": step,
      "weights": filing.WEIGHTS[ema],
      "parameters": costs.parameter_count(params),
      **training(workdir.path),
    }
    if gates_LH is not None:
      summary = gates_lib.summary(gates_LH[gates_lib.with_gates(config.model)])
      about["gates"] = {"gates_LH": gates_LH.tolist(), **summary}
    about |= {"command": command, "environment": _environment()}
    known: dict[tuple[str, str], Any] = {}
    for job in jobs:
      started = time.perf_counter()
      found, kept = _run(job, evaluators.get(job.task), params, known, workdir.path, console)
      about["seconds"] = time.perf_counter() - started
      own = read.get(job.task, config)
      results = _results(job, _about_dataset(job, own, datasets), about, found)
      everything[job.name] = results
      if jax.process_index() == 0:
        place = filing.Evaluated.of(results).folder(job.name, newest)
        folder = workdir.path / "evaluation" / place
        filing.write(folder, results)
        for one in kept:
          one.clear()
        _show(job, found, results, own, workdir.path, folder, console)
  return everything


def training(folder: Path) -> dict[str, Any]:
  """How training went: the median tokens per second, the most bytes of any device, the goodput, and
  the documents of the corpus that could not be read."""
  lines = read_metrics(folder)
  speeds = sorted(line["tokens_per_second"] for line in lines)
  return {
    "training_tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
    "training_step_bytes": max((line.get("step_bytes", 0) for line in lines), default=None),
    "goodput": goodput.summary(read_metrics(folder, goodput.KIND)),
    "unread_documents": _unread(Workdir(folder)),
  }


def trained_text(folder: Path) -> str | None:
  """The fingerprint of the text and tokenizer of a run; None if their store is not here."""
  workdir = Workdir(folder)
  try:
    return open_prepared(workdir.config().data.path, workdir.store).fingerprint
  except InputError:
    return None


def _unread(workdir: Workdir) -> int | None:
  """The documents that `?bad=skip` left out; None if the store of the corpus is not here."""
  try:
    store = open_prepared(workdir.config().data.path, workdir.store)
  except InputError:
    return None
  return sum(totals.get("bad", 0) for totals in store.splits.values())


def _run(
  job: Job,
  evaluator: Any,
  params: Any,
  known: dict[tuple[str, str], Any],
  path: Path,
  console: Console,
) -> tuple[dict[str, Any], list[Kept]]:
  """The result of every variant of a job, and the files of progress, for after they are filed.

  Results in `known`, from other jobs, are reused.
  """
  files = []
  for variant in job.variants:
    if (job.task, variant.name) not in known:
      how: dict[str, Any] = {}
      if hasattr(evaluator, "fingerprint") and jax.process_count() == 1:
        of = digest([job.task, str(variant), sums(params), evaluator.fingerprint])
        how["kept"] = Kept(path / "evaluation" / "unfinished" / f"{job.task}-{of}.safetensors", of)
        files.append(how["kept"])
      start = how["kept"].done if how else 0
      with track(console, f"{job.task}, {variant.name}", evaluator.chunks, start) as bar:
        known[job.task, variant.name] = evaluator.run(params, variant, advance=bar, **how)
  return {variant.name: known[job.task, variant.name] for variant in job.variants}, files


def _about_dataset(job: Job, config: Config, datasets: dict[str, Dataset]) -> dict[str, Any]:
  """What was read, and how: the facts that distinguish evaluations of the same task."""
  task, dataset = job.task or job.name, datasets.get(job.task)
  about: dict[str, Any] = {"task": task}
  if dataset is not None:
    corpora = Store | Conversations | Benchmark
    store = dataset if isinstance(dataset, corpora) else getattr(dataset, "store", None)
    path = getattr(dataset, "corpus", config.data.path)  # a task may hide in another corpus
    about["corpus"] = filing.about_corpus(store, path)
    if isinstance(dataset, Store | Pairs | Conversations):
      about["split"] = config.evaluation.split
    about["tokenizer"] = dataset.tokenizer.fingerprint
    about["facts"] = facts_of_job(task, config, dataset)._asdict()
  settings = filing.settings_of(config)
  return about | {
    "settings": settings,
    "protocol": filing.protocol(task, settings),
    "segment_length": config.model.segment_length,
  }


def _results(
  job: Job,
  dataset: dict[str, Any],
  about: dict[str, Any],
  found: dict[str, Any],
) -> dict[str, Any]:
  """The content of `results.json`."""
  figures = {name: one.to_dict() for name, one in found.items()}
  results = dataset | about
  if figures:
    results |= {"memory": figures.pop(INTACT.name), KINDS[job.task].others: figures}
  return results | {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _environment() -> dict[str, Any]:
  """The versions and devices that computed the figures."""
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
  folder: Path,
  console: Console,
) -> None:
  """Draws the pictures of a job into the folder of its results, and prints its tables."""
  if not job.task:
    gates_lib.draw(np.array(results["gates"]["gates_LH"]), folder / "gates.png")
    console.print(_gates(results, _shown(folder / "gates.png")))
    return
  tables = KINDS[job.task].tables
  pictures = tables.draw(found, results, folder)
  tables.show(found, results, config, console)
  console.print(_about(results, path, folder, pictures))
  tables.verdict(found, console)


def _about(results: dict[str, Any], path: Path, folder: Path, pictures: dict[str, Path]) -> Table:
  """A table of what was evaluated, the speed, and the paths of the files."""
  averaged = ", moving average" * filing.is_averaged(results)
  table = _table(f"the run, step {results['step']}{averaged}")
  speed = results["training_tokens_per_second"]
  table.add_row("tokens/s in training", f"{speed:,.0f}" if speed else "")
  if shares := results.get("goodput"):
    table.add_row("time of training", goodput.in_words(shares))
  if size := results["training_step_bytes"]:
    table.add_row("GiB a device in training", f"{size / 2**30:,.2f}")
  table.add_row("tokens/s in evaluation", f"{results['memory']['tokens_per_second']:,.0f}")
  table.add_row("parameters", f"{results['parameters']:,}")
  if corpus := results.get("corpus"):
    table.add_row("corpus", ", ".join([corpus["path"], *filter(None, [results.get("split")])]))
  table.add_row("checkpoint", _shown(path / "checkpoints" / str(results["step"])))
  table.add_row("results", _shown(folder / filing.FILE))
  for name, file in pictures.items():
    kind = {".html": "page", ".csv": "file"}.get(file.suffix, "picture")
    table.add_row(f"{kind}: {name}", _shown(file))
  return table


def _gates(results: dict[str, Any], picture: str) -> Table:
  """A table of the gates."""
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
