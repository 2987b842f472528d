"""Trains every memory system on the same tokens, reads whole held-out documents, prints one table.

    python benchmarks/compare.py --workdir=runs/compare [--systems=local,rmt]
                                 [--config=configs/compare.py] [--config.data.path=BOOKS ...]

A system that is already trained is not trained again. Fields given as --config.a.b=value apply to
all systems.
"""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infini_jax.cli import load_config
from infini_jax.config import SYSTEMS
from infini_jax.evaluation.filing import newest
from infini_jax.paths import folder_to_write
from infini_jax.plan.memories import memory
from infini_jax.progress import make_console

ROOT = Path(__file__).parent.parent
CONFIG = "configs/compare.py"


def main() -> int:
  """Trains and evaluates all systems; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder; each system has its own folder in it"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  every = ",".join(runpy.run_path(str(ROOT / CONFIG))["SYSTEMS"])
  parser.add_argument("--systems", default=every)
  parser.add_argument("--config", default=CONFIG, help=":SYSTEM is added to it")
  args, fields = parser.parse_known_args()
  console, found = make_console(), {}
  for system in args.systems.split(","):
    found[system] = measure(args, system, fields, console)
    if found[system] is None:
      return 1
  console.print(table(found))
  return 0


def measure(args, system: str, fields: list[str], console: Console) -> dict | None:
  """Trains and evaluates one system; None if a command failed."""
  workdir = args.workdir.resolve() / system
  workdir.mkdir(parents=True, exist_ok=True)
  settings = [f"--config={args.config}:{system}", *fields]
  for script in ("train", "eval"):
    console.print(f"{system}: {script} (see {workdir / script}.log)")
    command = [sys.executable, f"{script}.py", *settings, f"--workdir={workdir}"]
    with open(workdir / f"{script}.log", "w") as log:
      done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log)
    if done.returncode:
      console.print(f"{system}: {script} failed; see {workdir / script}.log")
      return None
  config = load_config(settings)
  results = newest(workdir, "perplexity")
  tokens = config.train.steps * config.data.lanes * config.data.segments
  return {
    "memory": memory(lambda mixer: config, config.model.mixer),
    "config": config,
    "results": results,
    "tokens": tokens * config.model.segment_length,
  }


def table(found: dict) -> Table:
  """The paper's Table 2, with speed and memory of training."""
  made = Table(title="whole held-out documents; the same training tokens for all")
  for name in ("system", "memory", "ratio", "XL cache", "N", "tokens", "perplexity (95%)"):
    made.add_column(name, justify="left" if name == "system" else "right")
  for name in ("memory held empty", "tokens/s", "MiB a step"):
    made.add_column(name, justify="right")
  most = max(r["memory"].elements for r in found.values() if not r["config"].model.memory.grows)
  for system, r in found.items():
    memory, scores = r["memory"], r["results"]["memory"]
    grows = r["config"].model.memory.grows
    size = f"{memory.elements:,}" + (" a token" if grows else "")
    ratio = "" if grows or not memory.elements else f"{most / memory.elements:,.1f}x"
    cache = f"{r['config'].model.segment_length}" if SYSTEMS[memory.mixer].keeps_segment else ""
    interval = " ({:.2f} to {:.2f})".format(*scores["interval"]) if scores["interval"] else ""
    out = r["results"]["knocked_out"].get("empty")
    made.add_row(
      *(system, size, ratio, cache, f"{r['config'].model.segment_length}", f"{r['tokens']:,}"),
      f"{scores['perplexity']:.2f}{interval}",
      f"{out['perplexity']:.2f}" if out else "",
      f"{r['results']['training_tokens_per_second']:,.0f}",
      f"{r['results']['training_step_bytes'] / 2**20:,.0f}",
    )
  return made


if __name__ == "__main__":
  sys.exit(main())
