"""The whole evaluation of a run: perplexity, knock-out, gates; one table, one JSON, pictures."""

import json
import math
from pathlib import Path
from typing import Any

import jax
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from infini_jax import plan
from infini_jax.config import Config
from infini_jax.evaluation import gates as gates_lib
from infini_jax.evaluation.perplexity import Perplexity, Scores
from infini_jax.models import abstract_params
from infini_jax.parallel import check_divisible, make_mesh
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir, open_inputs

NOTICEABLE = 1.001  # a knock-out that costs less than this factor shows no use of the memory


def evaluate(
  config: Config, path: str, console: Console, step: int | None = None
) -> dict[str, Any]:
  """Evaluates a checkpoint on whole documents and writes `WORKDIR/evaluation/`.

  Args:
    config: the run's; `config.evaluation` and `config.mesh` may differ from training.
    path: the workdir.
    console: where progress and the table go.
    step: which checkpoint; the newest by default.

  Returns:
    What `results.json` holds.

  Raises:
    InputError: no run or checkpoint there, or another config's; an empty split.
  """
  Workdir(path).config()  # there must be a run
  workdir, store = open_inputs(config, path, console)
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  with jax.set_mesh(mesh):
    params, step = Checkpoints(workdir).restore_params(abstract_params(config.model, mesh), step)
    documents = store.split(config.evaluation.split)
    evaluator = Perplexity(config, mesh, documents, store.tokenizer)
    scores = {}
    for name in ("memory", "knock-out") if config.model.mixer != "local" else ("memory",):
      with track(console, f"evaluate, {name}", evaluator.chunks) as bar:
        scores[name] = evaluator.run(params, knock_out=name == "knock-out", advance=bar)
    gates_LH = gates_lib.gates(params)

  folder = workdir.path / "evaluation"
  folder.mkdir(exist_ok=True)
  results: dict[str, Any] = {
    "step": step,
    "split": config.evaluation.split,
    "parameters": plan.parameter_count(params),
    "training_tokens_per_second": _training_speed(workdir.path),
    **{name.replace("-", "_"): s.to_dict() for name, s in scores.items()},
  }
  if gates_LH is not None:
    results["gates"] = {"gates_LH": gates_LH.tolist(), **gates_lib.summary(gates_LH)}
    gates_lib.draw(gates_LH, folder / "gates.png")
  if jax.process_index() == 0:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_positions(scores, folder / "positions.png")
    by_position = _profile(scores, "by_position", "by position, tokens")
    by_updates = _profile(scores, "by_compressions", "by memory updates before")
    console.print(Columns([by_position, by_updates]))
    console.print(_table(results, scores, workdir.path, step))
    _verdict(scores, console)
  return results


def draw_positions(scores: dict[str, Scores], file: Path) -> None:
  """Draws perplexity against the position in the document, with and without the memory."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.5, 4), layout="constrained")
  axes = figure.subplots()
  for name, score in scores.items():
    values = [_perplexity(*bucket) for bucket in score.by_position.values()]
    axes.plot(values, marker="o", label=name)
  starts = list(scores["memory"].by_position)
  axes.set_xticks(range(len(starts)), labels=[f"{s:,}" for s in starts], rotation=30)
  axes.set(xlabel="position in the document, from this token on", ylabel="perplexity per token")
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(file, dpi=120)


def _table(results: dict[str, Any], scores: dict[str, Scores], path: Path, step: int) -> Table:
  memory = scores["memory"]
  table = Table(title=f"{results['split']}: {memory.documents} whole documents, step {step}")
  table.add_column("figure")
  table.add_column("value", justify="right", overflow="fold")

  def row(name: str, value: str) -> None:
    table.add_row(name, value)

  row("perplexity per token", f"{memory.perplexity:.3f}")
  row("bits per byte", f"{memory.bits_per_byte:.4f}")
  row("perplexity per word", f"{memory.word_perplexity:.4g}")
  if "knock-out" in scores:
    out = scores["knock-out"]
    row("  memory knocked out: per token", f"{out.perplexity:.3f}")
    row("  memory knocked out: bits per byte", f"{out.bits_per_byte:.4f}")
    row("  memory knocked out: perplexity", f"{out.perplexity / memory.perplexity - 1:+.2%}")
  row("tokens, bytes", f"{memory.tokens:,}, {memory.bytes:,}")
  speed = results["training_tokens_per_second"]
  row("tokens/s in training", f"{speed:,.0f}" if speed else "")
  row("tokens/s in evaluation", f"{memory.tokens / memory.seconds:,.0f}")
  row("parameters", f"{results['parameters']:,}")
  if "gates" in results:
    g = results["gates"]
    row(
      "heads: local, mixers, memory", f"{g['local_heads']}, {g['mixer_heads']}, {g['memory_heads']}"
    )
    row("gates: least, greatest", f"{g['least']:.3f}, {g['greatest']:.3f}")
  shown = path if not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
  row("checkpoint", str(shown / "checkpoints" / str(step)))
  if "gates" in results:
    row("picture of the gates", str(shown / "evaluation" / "gates.png"))
  row("picture of the positions", str(shown / "evaluation" / "positions.png"))
  return table


def _profile(scores: dict[str, Scores], field: str, title: str) -> Table:
  """Perplexity in buckets that double, with the memory and without."""
  table = Table(title=title)
  for name in ("from", "tokens", *scores):
    table.add_column(name, justify="right")
  for start, (tokens, _) in getattr(scores["memory"], field).items():
    values = [f"{_perplexity(*getattr(s, field)[start]):.3f}" for s in scores.values()]
    table.add_row(f"{start:,}", f"{tokens:,}", *values)
  return table


def _verdict(scores: dict[str, Scores], console: Console) -> None:
  if "knock-out" not in scores:
    return
  ratio = scores["knock-out"].perplexity / scores["memory"].perplexity
  if ratio < NOTICEABLE:
    console.print(
      f"The memory carries nothing that helps: without it the perplexity is {ratio - 1:+.2%}. "
      f"Train longer, raise config.optimizer.gate_learning_rate, or use shorter segments and more "
      f"of them."
    )


def _perplexity(tokens: int, nats: float) -> float:
  return math.exp(nats / tokens)


def _training_speed(folder: Path) -> float | None:
  speeds = sorted(line["tokens_per_second"] for line in read_metrics(folder))
  return speeds[len(speeds) // 2] if speeds else None
