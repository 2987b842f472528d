"""Speed at which a store delivers training batches, and the memory that reading it takes.

    python benchmarks/loader.py [--config=configs/demo.py] [--path=STORE] [--seconds=15] \\
      [--config.a.b=value ...] [--json=FILE]

Nothing is computed with the batches. A training step that uses fewer tokens per second than this
never waits for data. Without --path the config's own corpus is read. If it is not a store, it is
first prepared into a folder that is deleted afterwards. Resident memory is that of this process,
measured before the store is opened, after it is opened, after some batches and after the last
batch. It must not grow with the batches.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from record import Results, add_json

from infini_jax.cli import load_config
from infini_jax.data import train_batches
from infini_jax.progress import make_console
from infini_jax.tasks import open_dataset, train_lanes

MIB = 2**20


def resident() -> float:
  """MiB of resident memory of this process, from Linux's /proc."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--path", help="a store or a corpus, instead of config.data.path")
  parser.add_argument("--seconds", type=float, default=15, help="how long (default %(default)s)")
  add_json(parser)
  args, rest = parser.parse_known_args()
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=configs/demo.py", *rest]
  if args.path:
    rest.append(f"--config.data.path={args.path}")
  config, console = load_config(rest), make_console()
  with tempfile.TemporaryDirectory() as cache:
    before = resident()
    lanes = train_lanes(config, open_dataset(config, Path(cache), console))
    opened = resident()
    T = config.data.segments * config.model.segment_length
    batches = train_batches(lanes, 0, 2**62, prefetch=config.data.prefetch)
    for _ in range(16):  # starts the threads, and finishes late imports
      next(batches)
    reading = resident()
    count, predicted, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < args.seconds:
      predicted += int(next(batches)["mask_BT"].sum())
      count += 1
    seconds, after = time.perf_counter() - started, resident()
  sizes = ("MiB before", "opened", "reading", "at the end")
  results = Results(
    f"{count:,} batches of {config.data.lanes} lanes, {T:,} tokens a lane",
    {"tokens/s": ",.0f", "ms a batch": ".2f", "padding": ".1%"} | dict.fromkeys(sizes, ",.0f"),
  )
  padding = 1 - predicted / (count * config.data.lanes * T)
  values = predicted / seconds, seconds / count * 1e3, padding
  results.add(*values, before, opened, reading, after)
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  main()
