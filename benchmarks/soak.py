"""A long run of a tiny model that is killed every few minutes: does anything grow?

    python benchmarks/soak.py --workdir=runs/soak
    python benchmarks/soak.py --workdir=runs/soak --steps=2000 --kill=20      # a short form

It takes --json=FILE, too.

It trains with validation, saving and metrics. The life of a process counts from its first logged
step, without the first tenth. From the first to the second half of it the median of resident memory
must grow by at most 2%, and the medians of open files and threads not at all. The run on disk must
stay as large as its checkpoints and metrics. No program is compiled after the start of a process:
the lines of the log are counted.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from record import Results, add_json
from torture import SMALL

from infini_jax.paths import folder_to_write
from infini_jax.progress import make_console, track
from infini_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parent.parent
EACH = 0.5  # seconds between two looks
FLAT = 0.02  # the share by which resident memory may grow
LOOKS = 60  # a half with fewer is too short to compare
FLAGS = (
  *SMALL,
  "--config.train.eval_every=500",
  "--config.train.eval_documents=1",
  "--config.train.checkpoint_every=250",
  "--config.train.log_every=10",
  "--config.train.keep_checkpoints=3",
)


class Look(NamedTuple):
  """A process at one moment, or the medians of many."""

  resident: float  # KiB
  files: float
  threads: float


class Life(NamedTuple):
  """One process: what it held in the first and in the second half of its life."""

  seconds: float
  looks: int  # in each half
  early: Look
  late: Look
  status: int

  @property
  def growth(self) -> float:
    """Of resident memory, as a share."""
    return self.late.resident / self.early.resident - 1

  @property
  def flat(self) -> bool:
    """Whether nothing grew."""
    same = self.late.files <= self.early.files and self.late.threads <= self.early.threads
    return self.growth <= FLAT and same


def main() -> int:
  """Trains to the end, prints a row for each process; the exit status is 1 if something grew."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder for all that is made"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--steps", type=int, default=20_000, help="(default %(default)s)")
  parser.add_argument("--kill", type=float, default=180, help="seconds between two kills")
  add_json(parser)
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
      lives.append(watched(process, args.kill, run, lambda step: advance(step, "")))
      disk.append(sum(f.stat().st_size for f in run.rglob("*") if f.is_file()))
      if lives[-1].status not in (0, -signal.SIGKILL):
        console.print(f"{log}: a process ended with status {lives[-1].status}")
        return 1
  compiled = len(re.findall(r"^compile: ", log.read_text(), re.M))
  results = table(lives)
  results.more |= {"compilations": compiled, "bytes on disk": disk}
  results.show(console)
  results.write(args.json)
  compared = [life for life in lives if life.looks >= LOOKS]
  flat = sum(life.flat for life in compared)
  print(
    f"{len(lives)} processes, {flat} of {len(compared)} long ones flat; {compiled} compilations of "
    f"the step; {disk[0] / 2**20:.1f} MiB on disk after the first, {max(disk) / 2**20:.1f} at most"
  )
  return 0 if compared and flat == len(compared) and compiled <= len(lives) else 1


def watched(process: subprocess.Popen, seconds: float, run: Path, advance) -> Life:
  """Looks at a process until it ends, and kills it after some seconds.

  Args:
    process: the process.
    seconds: its time.
    run: the run that it trains.
    advance: called with the newest logged step at each look.
  """
  started, first, looks = time.perf_counter(), newest_step(run), []
  while process.poll() is None:
    if time.perf_counter() - started > seconds:
      process.kill()
      break
    step = newest_step(run)
    if step != first and (found := look(process.pid)):
      looks.append(found)
    advance(step)
    time.sleep(EACH)
  status, lived = process.wait(), time.perf_counter() - started
  kept = looks[len(looks) // 10 :] or [Look(1, 0, 0)]
  half = -(-len(kept) // 2)
  middle = lambda part: Look(*(statistics.median(one[i] for one in part) for i in range(3)))
  return Life(lived, half, middle(kept[:half]), middle(kept[-half:]), status)


def look(pid: int) -> Look | None:
  """A process now, from /proc; None if it has ended."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
    files = len(os.listdir(f"/proc/{pid}/fd"))
  except OSError:
    return None
  field = lambda name: int((re.search(rf"^{name}:\s+(\d+)", status, re.M) or [0, 0])[1])
  return Look(field("VmRSS"), files, field("Threads"))


def newest_step(run: Path) -> int:
  """The last logged step."""
  lines = read_metrics(run)
  return lines[-1]["step"] if lines else 0


def table(lives: list[Life]) -> Results:
  """A row for each process."""
  columns = {"seconds": ".0f", "MiB": ".0f", "MiB later": ".0f", "growth": "+.1%", "files": ".0f"}
  columns |= {"files later": ".0f", "threads": ".0f", "threads later": ".0f", "ended with": "d"}
  results = Results("soak: medians of the first half, and of the second", columns)
  for one in lives:
    early, late = one.early, one.late
    results.add(
      *(one.seconds, early.resident / 1024, late.resident / 1024, one.growth),
      *(early.files, late.files, early.threads, late.threads, one.status),
    )
  return results


if __name__ == "__main__":
  sys.exit(main())
