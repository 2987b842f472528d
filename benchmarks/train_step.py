"""Training speed of the mixers, rules and forms, side by side in one run.

    python benchmarks/train_step.py [--config=configs/demo.py] [--config.a.b=value ...]

The variants are interleaved and the median of each is shown, for machines are noisy: compare the
last column, not runs of different days.
"""

import dataclasses
import statistics
import sys
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax.cli import load_config
from infini_jax.config import Config, resolve
from infini_jax.parallel import make_mesh, put_batch
from infini_jax.plan import flops_per_token
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import initial_state, make_train_step

VARIANTS = {
  "infini linear, parallel": {"mixer": "infini", "rule": "linear", "implementation": "parallel"},
  "infini linear, scan": {"mixer": "infini", "rule": "linear", "implementation": "scan"},
  "infini delta, parallel": {"mixer": "infini", "rule": "delta", "implementation": "parallel"},
  "infini delta, scan": {"mixer": "infini", "rule": "delta", "implementation": "scan"},
  "local": {"mixer": "local"},
  "full": {"mixer": "full"},
}
ROUNDS = 5


def prepare(config: Config, changes: dict):
  values = dataclasses.asdict(config)
  values["model"] |= changes
  values["data"]["carry_state"] = values["model"]["mixer"] != "full"
  config = resolve(values)
  mesh = make_mesh(config.mesh)
  jax.set_mesh(mesh)
  tx = make_optimizer(config)
  state = initial_state(config, tx, mesh)
  B, S = config.data.lanes, config.data.segments
  T = S * config.model.segment_length
  tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (B, T + 1), np.int32)
  batch = {
    "tokens_BT": tokens[:, :-1],
    "targets_BT": tokens[:, 1:],
    "mask_BT": np.ones((B, T), bool),
    "reset_BS": np.zeros((B, S), bool),
  }
  batch = put_batch(batch, mesh, B)
  step = jax.jit(make_train_step(config, tx), donate_argnums=0).lower(state, batch).compile()
  return config, step, state, batch


def main() -> None:
  console = Console()
  arguments = sys.argv[1:]
  if not any(a.startswith("--config=") for a in arguments):
    arguments = ["--config=configs/demo.py", *arguments]
  base = load_config(arguments)
  runs = {}
  for name, changes in VARIANTS.items():
    with console.status(f"compiling {name}"):
      runs[name] = prepare(base, changes)
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for round_ in range(ROUNDS + 1):
    for name, (config, step, state, batch) in runs.items():
      started = time.perf_counter()
      state, metrics = jax.block_until_ready(step(state, batch))
      if round_:  # the first one warms up
        seconds[name].append(time.perf_counter() - started)
      runs[name] = (config, step, state, batch)
  c = base
  tokens = c.data.lanes * c.data.segments * c.model.segment_length
  best = min(statistics.median(s) for s in seconds.values())
  table = Table(
    title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {tokens:,} tokens a step"
  )
  for column in ("variant", "ms a step", "tokens/s", "model GFLOP/s", "time to the fastest"):
    table.add_column(column, justify="left" if column == "variant" else "right")
  for name, values in seconds.items():
    median, model = statistics.median(values), runs[name][0].model
    flops = flops_per_token(model, c.data.segments * model.segment_length) * tokens / median
    row = (f"{median * 1e3:,.0f}", f"{tokens / median:,.0f}", f"{flops / 1e9:,.1f}")
    table.add_row(name, *row, f"{median / best:.2f}")
  console.print(table)


if __name__ == "__main__":
  main()
