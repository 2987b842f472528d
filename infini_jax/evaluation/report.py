"""The whole evaluation of a run: the task's figures, knock-outs, gates; table, JSON, pictures."""

import json
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from infini_jax import plan
from infini_jax.config import Config
from infini_jax.data import Store
from infini_jax.evaluation import gates as gates_lib
from infini_jax.evaluation import perplexity_tables, retrieval_tables
from infini_jax.evaluation.knock_out import INTACT, knock_outs
from infini_jax.evaluation.perplexity import Perplexity
from infini_jax.evaluation.retrieval import Retrieval
from infini_jax.models import abstract_params
from infini_jax.parallel import check_divisible, distributed, make_mesh
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir, open_inputs


def evaluate(
  config: Config, path: str, console: Console, step: int | None = None
) -> dict[str, Any]:
  """Evaluates a checkpoint, with its memory and knocked out, and writes `WORKDIR/evaluation/`.

  Args:
    config: the run's; `config.evaluation` and `config.mesh` may differ from training.
    path: the workdir.
    console: where progress and the table go.
    step: which checkpoint; the newest by default.

  Returns:
    What `results.json` holds.

  Raises:
    InputError: no run or checkpoint there, or another config's; an empty split; lengths too short.
  """
  Workdir(path).config()  # there must be a run
  task = config.evaluation.task or config.task.name
  with distributed.first_alone("inputs"):
    workdir, source = open_inputs(config, path, console, task)
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  with jax.set_mesh(mesh):
    evaluator: Perplexity | Retrieval
    if isinstance(source, Store):
      documents = source.split(config.evaluation.split)
      evaluator = Perplexity(config, mesh, documents, source.tokenizer)
    else:
      evaluator = Retrieval(config, mesh, source)
    params, step = Checkpoints(workdir).restore_params(abstract_params(config.model, mesh), step)
    found: dict[str, Any] = {}
    for variant in (INTACT, *knock_outs(config)):
      with track(console, f"evaluate, {variant.name}", evaluator.chunks) as bar:
        found[variant.name] = evaluator.run(params, variant, advance=bar)
    gates_LH = gates_lib.gates(config.model, params)

  results: dict[str, Any] = {
    "task": task,
    "split": config.evaluation.split if task == "text" else None,
    "step": step,
    "parameters": plan.parameter_count(params),
    **_training(workdir.path),
    "memory": found[INTACT.name].to_dict(),
    "knocked_out": {name: f.to_dict() for name, f in found.items() if name != INTACT.name},
  }
  if gates_LH is not None:
    results["gates"] = {"gates_LH": gates_LH.tolist(), **gates_lib.summary(gates_LH)}
  if jax.process_index() == 0:
    folder = workdir.path / "evaluation"
    folder.mkdir(exist_ok=True)
    pictures = {}
    if gates_LH is not None:
      pictures["gates"] = folder / "gates.png"
      gates_lib.draw(gates_LH, pictures["gates"])
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    tables = perplexity_tables if isinstance(source, Store) else retrieval_tables
    pictures |= tables.draw(found, folder, task)
    tables.show(found, results, config, console)
    console.print(_about(results, workdir.path, pictures))
    tables.verdict(found, console)
  return results


def _about(results: dict[str, Any], path: Path, pictures: dict[str, Path]) -> Table:
  """What was evaluated, how fast, and where everything lies."""
  table = Table(title=f"the run, step {results['step']}")
  table.add_column("figure")
  table.add_column("value", justify="right", overflow="fold")
  speed = results["training_tokens_per_second"]
  table.add_row("tokens/s in training", f"{speed:,.0f}" if speed else "")
  if size := results["training_step_bytes"]:
    table.add_row("GiB a device in training", f"{size / 2**30:,.2f}")
  table.add_row("tokens/s in evaluation", f"{results['memory']['tokens_per_second']:,.0f}")
  table.add_row("parameters", f"{results['parameters']:,}")
  if "gates" in results:
    g = results["gates"]
    heads = f"{g['local_heads']}, {g['mixer_heads']}, {g['memory_heads']}"
    table.add_row("heads: local, mixers, memory", heads)
    table.add_row("gates: least, greatest", f"{g['least']:.3f}, {g['greatest']:.3f}")
  shown = path if not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
  table.add_row("checkpoint", str(shown / "checkpoints" / str(results["step"])))
  for name, file in pictures.items():
    table.add_row(f"picture: {name}", str(shown / file.relative_to(path)))
  return table


def _training(folder: Path) -> dict[str, Any]:
  """What training took: the median speed, and the most bytes of a device."""
  lines = read_metrics(folder)
  speeds = sorted(line["tokens_per_second"] for line in lines)
  return {
    "training_tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
    "training_step_bytes": max((line.get("step_bytes", 0) for line in lines), default=None),
  }
