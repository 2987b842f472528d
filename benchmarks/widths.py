"""Does muP (`model.width_base`) hold? A coordinate check, and the best learning rate of each width.

    python benchmarks/widths.py coordinates [--out=coordinates.svg]
    python benchmarks/widths.py rates --source=STORE --workdir=runs/widths [--out=rates.svg]
                                      [--bases=0,64]

The first trains a few steps at widths 64 to 512, and prints how far activations moved from where
they began (root mean square over all coordinates). With muP this does not depend on the width. The
second trains widths 64 to 256 with several learning rates by `infini-jax sweep`; runs that are
finished are not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

from infini_jax import config as config_lib
from infini_jax.config import Config
from infini_jax.models import bind
from infini_jax.models.mixers.base import Chunk
from infini_jax.parallel import make_mesh
from infini_jax.progress import make_console
from infini_jax.report.comparison import TRAINING, training_loss
from infini_jax.report.runs import read_runs
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import initial_state, make_train_step

BASE = 64
HEAD = 32  # head_dim, the same at every width
STEPS = 8  # of the coordinate check
LANES, SEGMENTS, LENGTH = 4, 2, 32
FLAGS = (
  *(
    "--config.data.tokenizer=bytes",
    f"--config.data.lanes={LANES}",
    f"--config.data.segments={SEGMENTS}",
  ),
  *("--config.model.layers=2", "--config.model.vocab_size=264", f"--config.model.head_dim={HEAD}"),
  *(f"--config.model.segment_length={LENGTH}", "--config.optimizer.warmup_steps=20"),
  *("--config.train.steps=120", "--config.train.log_every=1", "--config.log.tensorboard=False"),
)
RATES = "2e-3,6e-3,18e-3,54e-3"


def main() -> int:
  """Runs one of the two checks; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("coordinates", "rates"))
  parser.add_argument("--widths", help="default: 64 to 512, or to 256")
  parser.add_argument("--rates", default=RATES)
  parser.add_argument("--bases", default=f"0,{BASE}", help="of the rates: values of width_base")
  parser.add_argument("--source", help="of the rates: a prepared store of bytes")
  parser.add_argument("--workdir", help="of the rates: the folder of the sweep")
  parser.add_argument("--out", type=Path, help="a picture")
  args = parser.parse_args()
  widths = [int(w) for w in (args.widths or "64,128,256,512").split(",")]
  if args.what == "coordinates":
    return coordinates(widths, args.out)
  return rates(widths if args.widths else widths[:3], args)


def sizes(width: int) -> dict[str, int]:
  """The sizes that grow with the width: heads of one size, and the feed-forward."""
  return {"width": width, "heads": width // HEAD, "kv_heads": width // HEAD, "ffn": 2 * width}


def config_of(width: int, base: int, rate: float = 8e-3) -> Config:
  """The model of the coordinate check."""
  model = {"layers": 2, "head_dim": HEAD, "vocab_size": 264, "segment_length": LENGTH}
  return config_lib.resolve(
    {
      "model": {**model, **sizes(width), "width_base": base},
      "run": {"remat": "none"},
      "data": {"lanes": LANES, "segments": SEGMENTS, "carry_state": False},
      "optimizer": {"learning_rate": rate, "warmup_steps": 0},
      "train": {"steps": 1000},
      "mesh": {"data": 1},
    }
  )


def text() -> dict[str, jax.Array]:
  """A batch: the first bytes of a few modules of the standard library."""
  T = SEGMENTS * LENGTH
  modules = [argparse, json, subprocess, __import__("ast")][:LANES]
  rows = [Path(module.__file__).read_bytes()[: T + 1] for module in modules]
  bytes_BT = np.stack([np.frombuffer(row, np.uint8).astype(np.int32) for row in rows])
  return {
    "tokens_BT": jnp.asarray(bytes_BT[:, :-1]),
    "targets_BT": jnp.asarray(bytes_BT[:, 1:]),
    "mask_BT": jnp.ones((LANES, T), bool),
    "reset_BS": jnp.zeros((LANES, SEGMENTS), bool).at[:, 0].set(True),
  }


def activations(config: Config, params: Any, tokens_BT: jax.Array) -> dict[str, jax.Array]:
  """What comes out of the embedding, of each layer's attention and of the layer, and the logits."""
  model = bind(config.model, params)
  graph, stacked = nnx.split(model.blocks)
  x_BTD, made = model.embed(tokens_BT), {}
  made["embedding"] = x_BTD
  for i in range(config.model.layers):
    take = lambda x, i=i: x[i]
    block = nnx.merge(graph, jax.tree.map(take, stacked))
    state = jax.tree.map(take, model.state(len(tokens_BT)))
    made[f"attention {i + 1}"] = block.attention(block.attention_norm(x_BTD), state, Chunk())[0]
    x_BTD = block(x_BTD, state, Chunk())[0]
    made[f"layer {i + 1}"] = x_BTD
  return made | {"logits": model.logits(model.for_head(model.final_norm(x_BTD)))}


def moved(config: Config, steps: int, batch: dict[str, jax.Array]) -> dict[str, float]:
  """How far each activation is from where it began after some steps, root mean square."""
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    tx = make_optimizer(config)
    state = initial_state(config, tx, mesh)
    look = jax.jit(lambda params: activations(config, params, batch["tokens_BT"]))
    before, update = look(state.params), jax.jit(make_train_step(config, tx))
    for _ in range(steps):
      state, _ = update(state, batch)
    after = look(state.params)
  size = lambda a, b: float(jnp.sqrt(jnp.mean((a - b).astype(jnp.float32) ** 2)))
  return {name: size(after[name], before[name]) for name in before}


def coordinates(widths: list[int], out: Path | None) -> int:
  """Prints the table of the coordinate check."""
  batch, found = text(), {}
  for base in (0, BASE):
    for width in widths:
      found[base, width] = moved(config_of(width, base), STEPS, batch)
  table = Table(title=f"how far activations moved in {STEPS} steps, root mean square")
  for name in ("", "activation", *(f"width {w}" for w in widths), "last / first"):
    table.add_column(name, justify="left" if name in ("", "activation") else "right")
  for base in (0, BASE):
    for name in found[base, widths[0]]:
      row = [found[base, width][name] for width in widths]
      said = f"width_base={base}"
      table.add_row(said, name, *(f"{x:.3f}" for x in row), f"{row[-1] / row[0]:.2f}")
  make_console().print(table)
  if out:
    curves = {
      title: {name: [found[base, w][name] for w in widths] for name in found[base, widths[0]]}
      for base, title in ((0, "width_base=0"), (BASE, f"width_base={BASE} (muP)"))
    }
    _draw(out, curves, widths, "width", f"change after {STEPS} steps (RMS)", log=True)
  return 0


def rates(widths: list[int], args: argparse.Namespace) -> int:
  """Trains the grid by `infini-jax sweep`, and prints the loss by width and rate."""
  fields = ",".join(f"model.{name}" for name in sizes(BASE))
  runs = []
  for base in map(int, args.bases.split(",")):
    # With the base as the width both are the same run.
    values = [f"({','.join(map(str, sizes(w).values()))})" for w in widths if w > base]
    folder = Path(args.workdir) / f"width_base={base}"
    command = [sys.executable, "-m", "infini_jax.cli", "sweep", "configs/demo.py", *FLAGS]
    command += [f"--config.data.path={args.source}", f"--config.model.width_base={base}"]
    command += [f"--out={folder}", "--grid", f"{fields}={','.join(values)}"]
    command += ["--grid", f"optimizer.learning_rate={args.rates}"]
    if status := subprocess.run(command).returncode:
      return status
    runs += read_runs([str(file.parent) for file in folder.glob("*/run.json")])
  found: dict[tuple[int, int], dict[float, float]] = {}
  for run in runs:
    m, rate = run.config.model, run.config.optimizer.learning_rate
    found.setdefault((m.width_base, m.width), {})[rate] = training_loss(run)
  every = sorted({rate for losses in found.values() for rate in losses})
  table = Table(title=f"{TRAINING} by width and learning rate")
  for name in ("", "width", *(f"{rate:g}" for rate in every), "least at"):
    table.add_column(name, justify="left" if not name else "right")
  curves: dict[str, dict[str, list[float]]] = {}
  for base, title in ((0, "width_base=0"), (BASE, f"width_base={BASE} (muP)")):
    for width in widths:
      losses = found.get((base, width)) or found.get((0, width), {})
      if not losses:
        continue
      row = [losses.get(rate, float("nan")) for rate in every]
      table.add_row(
        title, str(width), *("" if loss != loss else f"{loss:.3f}" for loss in row), least(losses)
      )
      curves.setdefault(title, {})[f"width {width}"] = row
  make_console().print(table)
  if args.out:
    _draw(args.out, curves, every, "learning rate", TRAINING, log=False)
  return 0


def least(losses: dict[float, float]) -> str:
  """The rate with the least loss, by a parabola through it and its neighbours in log(rate)."""
  every = sorted(losses)
  i = every.index(min(every, key=lambda rate: losses[rate]))
  if i in (0, len(every) - 1):
    return f"{every[i]:g} or {'less' if i == 0 else 'more'}"
  x = np.log(every[i - 1 : i + 2])
  a, b, _ = np.polyfit(x, [losses[rate] for rate in every[i - 1 : i + 2]], 2)
  return f"{np.exp(-b / (2 * a)):.4f}"


def _draw(out: Path, curves: dict, xs: list, xlabel: str, ylabel: str, log: bool) -> None:
  """A picture with one panel for each parametrization."""
  import matplotlib

  matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "widths"}  # small, reproducible
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 3.4), layout="constrained")
  panels = figure.subplots(1, len(curves), sharex=True, sharey=True)
  for axes, (title, lines) in zip(panels, curves.items(), strict=True):
    for name, ys in lines.items():
      there = [(x, y) for x, y in zip(xs, ys, strict=True) if y == y]
      axes.plot(*zip(*there, strict=True), marker=".", label=name)
    axes.set_xscale("log", base=2)
    if log:
      axes.set_yscale("log")
    axes.set(title=title, xlabel=xlabel, xticks=xs)
    axes.set_xticklabels([f"{x:g}" for x in xs], rotation=45)  # rates may lie close together
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  panels[0].set_ylabel(ylabel)
  panels[-1].legend(fontsize=8)
  figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
  sys.exit(main())
