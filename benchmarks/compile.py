"""Seconds until something happens: help, the first step with and without kept programs, compiling.

    python benchmarks/compile.py [--json=FILE]

The commands run in their own processes, with an empty folder of kept programs at first. Tracing,
lowering and compiling are timed here for several depths and numbers of segments: both are loops of
the program, so neither should cost more when there are more of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from record import Results, add_json

from infini_jax.config import resolve
from infini_jax.parallel import abstract_batch, make_mesh
from infini_jax.plan.compiled import example_batch
from infini_jax.progress import make_console, track
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, make_train_step

ROOT = Path(__file__).parent.parent
TINY = ["--config=configs/demo.py", "--config.data.path=docs", "--config.data.tokenizer=bytes"]
TINY += ["--config.model.vocab_size=512", "--config.model.layers=2", "--config.model.width=64"]
TINY += ["--config.model.heads=2", "--config.model.kv_heads=2", "--config.model.ffn=128"]
TINY += ["--config.model.head_dim=32", "--config.data.lanes=2", "--config.train.eval_every=0"]
TINY += ["--config.train.steps=1"]


def command(*args: str, environ: dict[str, str]) -> float:
  """Seconds of a command, from its start to its end."""
  began = time.perf_counter()
  subprocess.run(
    [sys.executable, *args], cwd=ROOT, env={**os.environ, **environ}, check=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  return time.perf_counter() - began


def stages(layers: int, segments: int) -> tuple[float, float, float]:
  """Seconds of tracing, lowering and compiling a training step."""
  config = resolve({
    "model": {"layers": layers, "width": 128, "heads": 2, "kv_heads": 2, "head_dim": 64,
              "ffn": 256, "vocab_size": 512, "segment_length": 128},
    "data": {"lanes": 2, "segments": segments},
  })  # fmt: skip
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    tx = make_optimizer(config)
    arguments = abstract_state(config, tx, mesh), abstract_batch(example_batch(config), mesh)
    times = [time.perf_counter()]
    traced = jax.jit(make_train_step(config, tx), donate_argnums=0).trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
  first, second, third = (b - a for a, b in zip(times, times[1:], strict=False))
  return first, second, third


def main() -> None:
  """Measures all, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  add_json(parser)
  args = parser.parse_args()
  columns = {"what": "", "trace s": ".2f", "lower s": ".2f", "compile s": ".2f", "all s": ".2f"}
  results = Results(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", columns)
  console = make_console()
  with tempfile.TemporaryDirectory() as folder, track(console, "commands"):
    environ = {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": ""}
    seconds = min(command("train.py", "--help", environ=environ) for _ in range(3))
    results.add("train.py --help", None, None, None, seconds)
    for run, name in enumerate(("no kept programs", "kept programs")):
      where = f"--workdir={folder}/{run}"
      seconds = command("train.py", where, *TINY, environ=environ)
      results.add(f"a training of one step, {name}", None, None, None, seconds)
  stages(2, 4)  # the first loads much that the others find
  for layers, segments in ((2, 4), (32, 4), (2, 64)):
    jax.clear_caches()
    with track(console, f"{layers} layers, {segments} segments"):
      taken = stages(layers, segments)
    results.add(f"{layers} layers, {segments} segments", *taken, sum(taken))
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  main()
