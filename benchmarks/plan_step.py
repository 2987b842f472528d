"""Where the bytes and the time of a training step go, in a program compiled for absent devices.

    python benchmarks/plan_step.py --topology=v5e:4x4 --config=configs/llm_1b.py \\
      [--config.a.b=value ...] [--json=FILE] [--text=FILE]

The bytes are those between a chip and its HBM, counted in the program (`infini_jax.plan.hbm`). The
time is an estimate: of each operation the longer of its bytes at the data sheet's rate and the time
that XLA for TPUs expects. Collectives that overlap with other work are counted as if they did not.
Use it to compare two programs, not to predict a machine. `--text` keeps XLA's text; `--from=FILE`
reads it instead of compiling.
"""

import argparse
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
from record import Results, add_json

from infini_jax.config import InputError, load_config
from infini_jax.parallel.chips import CHIPS
from infini_jax.plan.compiled import compile_program
from infini_jax.plan.gpus import gpu_devices
from infini_jax.plan.hbm import Moved, moved
from infini_jax.plan.tpus import tpu_devices
from infini_jax.progress import make_console, track

CLOCK = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.74e9}  # Hz of XLA's cycles, TPUs
COLLECTIVES = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
# A category, and what is searched in the names of an operation. The first that is found counts.
SCOPES = (
  ("optimizer", r"/optimizer/|optimizer\)"),
  ("local attention: kernel", r" splash|dot_product_attention"),
  ("local attention: around the kernel", r"/local/|\(local|static_sparsity_splash"),
  ("memory", r"/memory/|\(memory"),
  ("mixing", r"infini/|gated_delta/|/local_attention/"),
  ("feed-forward", r"/ffn/|\(ffn"),
  ("projections", r"BTD,D[HK]E|BTHE,HED"),
  ("head and loss", r"BTD,VD|/loss|jvp\(\)/shard_map|jvp\(\)\)/shard_map"),
)


def category(one: Moved) -> str:
  """What an operation is for."""
  if re.search(COLLECTIVES, one.op):
    return "collectives"
  names = f"{one.scope} {one.name}"  # a kernel for TPUs has no scope
  return next((name for name, text in SCOPES if re.search(text, names)), "rest of the layers")


def main() -> int:
  """Compiles, counts, and prints one table; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--topology", required=True, help="such as v5e:4x4 or h100:8")
  add_json(parser)
  parser.add_argument("--text", type=Path, help="a file for XLA's text of the program")
  parser.add_argument("--from", type=Path, dest="read", help="a file that --text wrote")
  args, rest = parser.parse_known_args()
  jax.config.update("jax_platforms", "cpu")
  console = make_console()
  chip = CHIPS.get(args.topology.partition(":")[0])
  if chip is None:
    parser.error(f"--topology={args.topology}: no such chip; there are {', '.join(CHIPS)}")
  title, peak = args.topology, None
  try:
    if args.read:
      text = args.read.read_text()
    else:
      config = load_config(rest)
      tpus, slices = chip.platform == "tpu", config.mesh.dcn
      devices = tpu_devices(args.topology, slices) if tpus else gpu_devices(args.topology)
      began = time.perf_counter()
      with track(console, f"compile for {args.topology}"):
        step = compile_program(config, devices)
      text = step.as_text() or ""
      peak = step.memory_analysis().peak_memory_in_bytes / 2**30
      title += f", peak {peak:.2f} GiB, compiled in {time.perf_counter() - began:.0f} s"
  except (InputError, OSError) as error:
    print(f"plan_step.py: {error}", file=sys.stderr)
    return 2
  if args.text:
    args.text.write_text(text)

  rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
  for one in moved(text, CLOCK.get(chip.name, 1.5e9)):
    row, bound = rows[category(one)], one.bytes / chip.memory_rate
    row["operations"] += 1
    row["GB"] += one.bytes / 1e9
    row["ms"] += 1e3 * max(bound, one.seconds)
    if not one.multiplies:
      row["GB without products"] += one.bytes / 1e9
      row["ms without products"] += 1e3 * bound
  columns = ("operations", "GB", "ms", "GB without products", "ms without products")
  rows["all"] = {name: sum(row[name] for row in [*rows.values()]) for name in columns}
  results = Results(
    title, {"category": "", "operations": ",.0f"} | dict.fromkeys(columns[1:], ",.2f")
  )
  for name, row in sorted(rows.items(), key=lambda item: (item[0] == "all", -item[1]["GB"])):
    results.add(name, *(row[column] for column in columns))
  results.more["peak GiB"] = peak
  results.show(console)
  results.write(args.json)
  return 0


if __name__ == "__main__":
  sys.exit(main())
