"""The pass key with both rules and several seeds: trains, evaluates, and prints one table.

    python benchmarks/passkey.py --workdir=runs/passkeys
    python benchmarks/passkey.py --workdir=runs/passkeys --far-lengths=1048576 --far-samples=4

The lengths are those of the config, and far lengths with fewer keys. A run that exists already is
not trained again; it resumes from its last state. An evaluation resumes in the same way. With
`--jobs=2` two runs share the machine, one core each. Their training times are then longer than
those of a single run.
"""

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infini_jax.evaluation.filing import newest
from infini_jax.evaluation.retrieval import wilson
from infini_jax.paths import folder_to_write
from infini_jax.progress import make_console

ROOT = Path(__file__).parent.parent


def main() -> int:
  """Trains and evaluates all runs; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder; each run has its own folder in it"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--config", default="configs/passkey_tiny.py")
  parser.add_argument("--rules", default="linear,delta")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--lengths", help="tokens, such as 512,2048; by default the config's")
  parser.add_argument(
    "--samples", help="fresh keys for each length and depth; by default the config's"
  )
  what = "like --lengths; '': none (default %(default)s)"
  parser.add_argument("--far-lengths", default="262144,1048576,4194304", help=what)
  parser.add_argument("--far-samples", default="20", help="like --samples (default %(default)s)")
  parser.add_argument("--depths", default="0.0,0.5,1.0", help="key depths (default %(default)s)")
  parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
  args = parser.parse_args()

  console = make_console()
  runs = [(rule, int(seed)) for seed in args.seeds.split(",") for rule in args.rules.split(",")]
  waiting: queue.Queue = queue.Queue()
  for run in runs:
    waiting.put(run)
  found: dict = {}

  def work(core: int) -> None:
    while not waiting.empty():
      rule, seed = waiting.get()
      found[rule, seed] = measure(args, rule, seed, core if args.jobs > 1 else None, console)

  threads = [threading.Thread(target=work, args=(core,)) for core in range(args.jobs)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  if any(result is None for result in found.values()):
    return 1
  console.print(table({run: found[run] for run in runs}))
  return 0


def measure(args, rule: str, seed: int, core: int | None, console: Console) -> dict | None:
  """Trains and evaluates one run; None if a command failed."""
  workdir = args.workdir / f"{rule}-{seed}"
  settings = [f"--config={args.config}", f"--workdir={workdir}"]
  settings += [f"--config.infini.rule={rule}", f"--config.train.seed={seed}"]
  commands = {"train": ["train.py", *settings]}
  for name, lengths, samples in (
    ("eval", args.lengths, args.samples),
    ("far", args.far_lengths, args.far_samples),
  ):
    if name == "far" and not lengths:
      continue
    asked = [f"--config.evaluation.depths=({args.depths},)"]
    if lengths:
      asked.append(f"--config.evaluation.lengths=({lengths},)")
    if samples:
      asked.append(f"--config.evaluation.samples={samples}")
    commands[name] = ["eval.py", *settings, *asked, "--task=passkey,gates"]
  pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
  workdir.mkdir(parents=True, exist_ok=True)
  found, seconds = [], {}
  for name, command in commands.items():
    console.print(f"{rule}, seed {seed}: {name} (see {workdir / name}.log)")
    started = time.perf_counter()
    with open(workdir / f"{name}.log", "w") as log:
      command = [sys.executable, *command]
      done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=pin)
    seconds[name] = time.perf_counter() - started
    if done.returncode:
      console.print(f"{rule}, seed {seed}: {name} failed; see {workdir / name}.log")
      return None
    console.print(f"{rule}, seed {seed}: {name} took {seconds[name]:.0f} s")
    if name != "train":
      found.append(newest(workdir, "passkey"))
  cells = [cell for one in found for cell in one["memory"]["cells"]]
  empty = [cell for one in found for cell in one["knocked_out"]["empty"]["cells"]]
  return {"cells": cells, "empty": empty, "gates": found[0]["gates"], "seconds": seconds}


def table(found: dict) -> Table:
  """Exact match of every run by length and depth, the largest with the memory held empty, gates."""
  made = Table(title="whole keys recalled; memory held empty: the highest figure at depths below 1")
  for name in ("rule", "seed", "tokens"):
    made.add_column(name, justify="right")
  depths = list(dict.fromkeys(c["depth"] for c in next(iter(found.values()))["cells"]))
  for depth in depths:
    made.add_column(f"depth {depth:g} (95%)", justify="right")
  for name in ("memory held empty", "opened heads"):
    made.add_column(name, justify="right")
  for (rule, seed), results in found.items():
    cells = results["cells"]
    for length in dict.fromkeys(c["length"] for c in cells):
      here = [c for c in cells if c["length"] == length]
      shares = [
        f"{c['exact_match']:.3f} (from {wilson(c['exact'], c['samples'])[0]:.2f})" for c in here
      ]
      out = [c["exact_match"] for c in results["empty"] if c["length"] == length and c["depth"] < 1]
      opened = f"{results['gates']['opened_heads']} (to {results['gates']['greatest']:.2f})"
      made.add_row(rule, str(seed), f"{length:,}", *shares, f"{max(out):.3f}", opened)
  return made


if __name__ == "__main__":
  sys.exit(main())
