"""A long run of a tiny model that is killed every few minutes: does anything grow?

    python benchmarks/soak.py --workdir=runs/soak
    python benchmarks/soak.py --workdir=runs/soak --steps=2000 --kill=20      # a short form

It trains with validation, saving and metrics. After the first tenth of each process' life, resident
memory must stay within 2%, and open files and threads must not grow; the run on disk is bounded.
No program is compiled after the start of a process: the lines of the log are counted.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from torture import SMALL

from infini_jax.paths import folder_to_write
from infini_jax.progress import make_console, track
from infini_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parent.parent
EACH = 0.5  # seconds between two looks
FLAT = 0.02  # the share by which resident memory may grow
WARM_UP = 30  # seconds: shorter lives are too short to compare
FLAGS = (
  *SMALL,
  "--config.train.eval_every=500",
  "--config.train.eval_documents=1",
  "--config.train.checkpoint_every=250",
  "--config.train.log_every=10",
  "--config.train.keep_checkpoints=3",
)


class Look(NamedTuple):
  """A process at one moment."""

  seconds: float  # since its start
  resident: int  # KiB
  files: int
  threads: int


class Life(NamedTuple):
  """One process: what it held after the first tenth of its life, and at most after that."""

  seconds: float
  early: Look
  most: Look
  status: int

  @property
  def growth(self) -> float:
    """Of resident memory, as a share."""
    return self.most.resident / self.early.resident - 1


def main() -> int:
  """Trains to the end, prints a row for each process; the exit status is 1 if something grew."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder for all that is made"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--steps", type=int, default=20_000, help="(default %(default)s)")
  parser.add_argument("--kill", type=float, default=180, help="seconds between two kills")
  args = parser.parse_args()
  console, root = make_console(), args.workdir.resolve()
  root.mkdir(parents=True, exist_ok=True)
  run, log = root / "run", root / "log"
  config, texts = ROOT / "configs" / "demo.py", f"--config.data.path={ROOT / 'docs'}"
  command = [sys.executable, "train.py", f"--config={config}", f"--workdir={run}", texts, *FLAGS]
  command += [
    f"--config.train.steps={args.steps}",
    f"--config.run.compilation_cache={root}/programs",
  ]
  lives: list[Life] = []
  disk: list[int] = []
  with track(console, "soak", args.steps) as advance:
    while not lives or lives[-1].status != 0:
      with log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
      lives.append(watched(process, args.kill, lambda: advance(newest_step(run), "")))
      disk.append(sum(f.stat().st_size for f in run.rglob("*") if f.is_file()))
      if lives[-1].status not in (0, -signal.SIGKILL):
        console.print(f"{log}: a process ended with status {lives[-1].status}")
        return 1
  compiled = len(re.findall(r"^compile: ", log.read_text(), re.M))
  console.print(table(lives))
  console.print(
    f"{len(lives)} processes, {compiled} compilations of the step, "
    f"{max(disk) / 2**20:.1f} MiB on disk at most",
    highlight=False,
  )
  compared = [life for life in lives if life.seconds >= WARM_UP]
  flat = all(
    life.growth <= FLAT
    and life.most.files <= life.early.files
    and life.most.threads <= life.early.threads
    for life in compared
  )
  return 0 if compared and flat and compiled <= len(lives) else 1


def watched(process: subprocess.Popen, seconds: float, advance) -> Life:
  """Looks at a process until it ends, and kills it after some seconds."""
  started, looks = time.perf_counter(), []
  while process.poll() is None:
    now = time.perf_counter() - started
    if now > seconds:
      process.kill()
      break
    if found := look(process.pid, now):
      looks.append(found)
    advance()
    time.sleep(EACH)
  status, lived = process.wait(), time.perf_counter() - started
  tenth = lived / 10 + (lived / 10 if lived > WARM_UP else 0)  # the start is no part of the life
  late = [one for one in looks if one.seconds >= max(tenth, min(10, lived / 2))] or looks[-1:]
  most = Look(lived, *(max(one[i] for one in late) for i in (1, 2, 3)))
  return Life(lived, late[0], most, status)


def look(pid: int, seconds: float) -> Look | None:
  """A process now, from /proc; None if it has ended."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
    files = len(os.listdir(f"/proc/{pid}/fd"))
  except OSError:
    return None
  field = lambda name: int((re.search(rf"^{name}:\s+(\d+)", status, re.M) or [0, 0])[1])
  return Look(seconds, field("VmRSS"), files, field("Threads"))


def newest_step(run: Path) -> int:
  """The last logged step."""
  lines = read_metrics(run)
  return lines[-1]["step"] if lines else 0


def table(lives: list[Life]) -> Table:
  """A row for each process."""
  made = Table(title="soak: after the first tenth, and the most after that", title_justify="left")
  for name in ("seconds", "MiB", "growth", "files", "threads", "ended with"):
    made.add_column(name, justify="right")
  for one in lives:
    pair = lambda name, one=one: f"{getattr(one.early, name)}, {getattr(one.most, name)}"
    mib = f"{one.early.resident / 1024:.0f}, {one.most.resident / 1024:.0f}"
    made.add_row(
      f"{one.seconds:.0f}", mib, f"{one.growth:+.1%}", pair("files"), pair("threads"),
      str(one.status),
    )  # fmt: skip
  return made


if __name__ == "__main__":
  sys.exit(main())
