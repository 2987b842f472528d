"""Runs random cases for some time, and prints how many there were.

    python -m tests.fuzz --minutes=120
    python -m tests.fuzz --only=files --seed=1234 --cases=1     # one case again

A case that fails is printed with its seed and its traceback, and the next one begins. The exit
status is then 1.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from tests.compiling import QUICKLY, with_eight_devices

if __name__ == "__main__":  # under pytest, conftest.py has done it
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = with_eight_devices(os.environ.get("XLA_FLAGS", ""), QUICKLY)

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from tests.fuzz import configs, files, ops

PARTS = {"ops": ops.case, "configs": configs.case, "files": files.case}
if find_spec("starlette") and find_spec("httpx"):  # the extra serve, and its client
  from tests.fuzz import requests

  PARTS["requests"] = requests.case
SHOWN = 10  # failures whose tracebacks are printed
TURN = 30  # seconds of a part before the next one


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=120.0, help="of all parts together")
  parser.add_argument("--only", choices=PARTS, action="append", help="a part; by default all")
  parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first case")
  parser.add_argument("--cases", type=int, default=sys.maxsize, help="at most so many of a part")
  args = parser.parse_args(arguments)
  console = Console(stderr=True)
  parts = args.only or list(PARTS)
  counts: dict[str, Counter] = {part: Counter() for part in parts}
  end, failures = time.monotonic() + 60 * args.minutes, 0
  with tempfile.TemporaryDirectory(prefix="infini_jax_fuzz_") as root:
    turns = 0
    while time.monotonic() < end and any(c.total() < args.cases for c in counts.values()):
      part = parts[turns % len(parts)]
      if turns:
        jax.clear_caches()
      turns += 1
      leave = min(end, time.monotonic() + TURN)
      while time.monotonic() < leave and counts[part].total() < args.cases:
        seed = args.seed + counts[part].total()
        try:
          outcome = PARTS[part](np.random.default_rng(seed), Path(root))
        except Exception:
          outcome, failures = "failed", failures + 1
          if failures <= SHOWN:
            console.print(f"python -m tests.fuzz --only={part} --seed={seed} --cases=1")
            traceback.print_exc()
        counts[part][outcome] += 1
      console.print(f"{part}: {counts[part].total():,} cases", highlight=False)
  Console().print(table(counts, args.seed))
  told = ", ".join(f"{c.total():,} of {part}" for part, c in counts.items())
  print(f"{sum(c.total() for c in counts.values()):,} cases ({told}), {failures or 'none'} failed")
  return 1 if failures else 0


def table(counts: dict[str, Counter], seed: int) -> Table:
  """A row for each part and outcome."""
  made = Table(title=f"random cases, first seed {seed}")
  for name in ("part", "outcome", "cases"):
    made.add_column(name, justify="right" if name == "cases" else "left")
  for part, outcomes in counts.items():
    for outcome, count in sorted(outcomes.items()):
      made.add_row(part, outcome, f"{count:,}")
  return made


if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  sys.exit(main())
