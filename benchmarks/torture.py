"""What kills a run, and what happens to its files: one table.

    python benchmarks/torture.py --workdir=runs/torture
    python benchmarks/torture.py --workdir=runs/torture --only=damage

`kill` ends a training by SIGKILL at random moments, and starts it again until it is done. `kill by
two` does so to one of two processes. At the end, all arrays and losses must be those of a run
without signals, to the bit. `stop` does the same by SIGTERM, which must be answered within 10 s,
with status 75 (stopped) or 0 (done), or -15 if Python had not yet begun to listen.
`disk` makes calls fail that write to the run: a full disk, a quota, a disk that is read-only or
broken, once, for a while, for good, or now and then (benchmarks/faults.c, by gcc). The run
continues or ends with one line; the next start, on a whole disk, ends with the arrays and losses of
a run without faults. `damage` changes each file of the newest checkpoint of a run in six ways. The
next start must notice each change that alters what is restored, and continue from the checkpoint
before.
`fuzz` is `make fuzz`, and `soak` is benchmarks/soak.py; the row has their last lines. Together they
take three hours or more, all other parts together two.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax.config import InputError
from infini_jax.parallel import make_mesh
from infini_jax.paths import folder_to_write
from infini_jax.progress import make_console, track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state
from infini_jax.training.stop_signal import STOPPED

ROOT = Path(__file__).parent.parent
STEPS = 6  # of the run that is damaged; it has checkpoints of step 3 and 6
LONG = 40  # steps of the runs that get signals
TIMELY = 10  # seconds within which a SIGTERM must be answered
COUNT = [50]  # signals of a part
PATIENCE = {"INFINI_PEER_TIMEOUT": "20", "INFINI_JOIN_TIMEOUT": "60"}  # seconds, of two processes
MINUTES, SOAKED = [120.0], [20_000]  # of fuzz; steps of soak
SMALL = (
  "--config.data.tokenizer=bytes",
  "--config.model.layers=2",
  "--config.model.width=32",
  "--config.model.heads=2",
  "--config.model.kv_heads=1",
  "--config.model.head_dim=16",
  "--config.model.ffn=64",
  "--config.model.vocab_size=512",
  "--config.model.segment_length=32",
  "--config.data.segments=2",
)
FLAGS = (
  *SMALL,
  f"--config.train.steps={STEPS}",
  "--config.train.checkpoint_every=3",
  "--config.train.keep_checkpoints=5",
)


def flipped(data: bytes, rng: random.Random) -> bytes:
  """One bit of a byte is changed."""
  at = rng.randrange(len(data)) if data else 0
  return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else b"\1"


# From the bytes of a file to those of the damaged one; None: the file is removed.
DAMAGES = {
  "a bit flipped": flipped,
  "half of it": lambda data, rng: data[: len(data) // 2],
  "empty": lambda data, rng: b"",
  "zeros": lambda data, rng: bytes(len(data)),
  "longer": lambda data, rng: data + b"\0" * 64,
  "removed": lambda data, rng: None,
}


def main() -> int:
  """Runs the parts, prints the table; the exit status is 1 if a bar is not met."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder for all that is made"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
  parser.add_argument("--count", type=int, default=50, help="signals of a part (default 50)")
  parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
  parser.add_argument("--minutes", type=float, default=120, help="of fuzz (default %(default)s)")
  parser.add_argument("--steps", type=int, default=20_000, help="of soak (default %(default)s)")
  args = parser.parse_args()
  console, root = make_console(), args.workdir.resolve()
  root.mkdir(parents=True, exist_ok=True)
  COUNT[0], MINUTES[0], SOAKED[0] = args.count, args.minutes, args.steps
  table = Table(title=f"torture, seed {args.seed}", title_justify="left")
  for column in ("part", "cases", "result", "bar"):
    table.add_column(column)
  good = True
  for name in args.only or PARTS:
    cases, result, bar, met = PARTS[name](root, args.seed, console)
    table.add_row(name, f"{cases:,}", result, bar)
    good &= met
  console.print(table)
  return 0 if good else 1


def trained(root: Path, console: Console) -> Path:
  """A small run on the pages of the documentation."""
  run = root / "run"
  if not (run / "checkpoints" / str(STEPS)).exists():
    shutil.rmtree(run, ignore_errors=True)
    config, texts = ROOT / "configs" / "demo.py", f"--config.data.path={ROOT / 'docs'}"
    command = ["train.py", f"--config={config}", f"--workdir={run}", texts, *FLAGS]
    with console.status("training a small run"):
      subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
  return run


class Ended(NamedTuple):
  """How processes that were sent a signal ended."""

  seconds: float  # from the signal to the end
  status: int
  listened: bool  # whether the process had a handler for SIGTERM when the signal came

  def is_stop(self) -> bool:
    """Whether a scheduler learns from the status that the process was stopped, or is done."""
    return self.status in (0, STOPPED) or (self.status == -signal.SIGTERM and not self.listened)


def kill(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """SIGKILL at random moments of one process."""
  return _interrupted(root, seed, console, signal.SIGKILL, 1)


def kill_by_two(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """SIGKILL at random moments of one of two processes; the other must end by itself."""
  return _interrupted(root, seed, console, signal.SIGKILL, 2)


def stop(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """SIGTERM at random moments of one process."""
  return _interrupted(root, seed, console, signal.SIGTERM, 1)


def _interrupted(root, seed, console, number, processes) -> tuple[int, str, str, bool]:
  """Starts runs, sends the signal to one process at random moments, and compares the ends."""
  rng, count = random.Random(seed), COUNT[0]
  straight = root / f"straight-{processes}"
  seconds = _straight(straight, processes)
  expected = _restored(straight, LONG), _losses(straight)
  ends: list[Ended] = []
  wrong = run = 0
  name = f"{number.name}, {processes} process{'es' * (processes > 1)}"
  with track(console, name, count) as advance:
    while len(ends) < count:
      run += 1
      workdir = root / "interrupted"
      shutil.rmtree(workdir, ignore_errors=True)
      while True:
        started = _start(workdir, processes)
        if len(ends) < count and not _ended(started, rng.uniform(0, seconds)):
          ends.append(_signalled(started, rng.randrange(processes), number))
          advance(len(ends), f"{ends[-1].seconds:.1f} s")
          continue
        statuses = [process.wait(300) for process in started]
        if any(statuses):
          console.print(f"run {run}: ended with {statuses}")
          wrong += 1
        break
      found = _restored(workdir, LONG), _losses(workdir)
      if not all(map(_same, found[0], expected[0])) or found[1] != expected[1]:
        console.print(f"run {run}: other arrays or losses than without signals")
        wrong += 1
  slowest = max(end.seconds for end in ends)
  statuses = Counter(end.status for end in ends)
  told = ", ".join(f"{count} with {status}" for status, count in sorted(statuses.items()))
  result = f"{run - wrong} of {run} runs as without signals; slowest end {slowest:.1f} s; {told}"
  met, bar = not wrong, "all runs"
  if number == signal.SIGTERM:
    met &= slowest <= TIMELY and all(end.is_stop() for end in ends)
    bar += f", ends within {TIMELY} s with {STOPPED} or 0"
  return len(ends), result, bar, met


def disk(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """Trains while calls that write fail, and once more while they do not; compares the ends."""
  rng, count = random.Random(seed), COUNT[0]
  straight, log, library = root / "straight-1", root / "faults", root / "faults.so"
  source = ROOT / "benchmarks" / "faults.c"
  subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
  _straight(straight, 1)
  expected = _restored(straight, LONG), _losses(straight)
  workdir = root / "faulty"

  def train(**faults: object) -> int:
    named = {f"FAULTS_{name}": str(value) for name, value in faults.items()}
    preload = {"LD_PRELOAD": str(library), "FAULTS_FOLDER": str(workdir)} if faults else {}
    (process,) = _start(workdir, 1, preload | named)
    return process.wait(600)

  calls = root / "calls"
  shutil.rmtree(workdir, ignore_errors=True)
  train(FROM=10**9, CALLS=calls)
  most = int(calls.read_text())
  outcomes: Counter[str] = Counter()
  wrong = 0
  with track(console, f"disk, {most} calls", count) as advance:
    for case in range(count):
      shutil.rmtree(workdir, ignore_errors=True)
      log.unlink(missing_ok=True)
      output = Path(f"{workdir}.log")
      output.unlink(missing_ok=True)
      number = rng.choice((errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS))
      faults = {"FROM": rng.randrange(most), "COUNT": rng.choice((1, 5, most // 10, 0))}
      if case % 4 == 3:
        faults = {"EVERY": rng.choice((20, 100, 500)), "SEED": rng.randrange(10**6)}
      status = train(LOG=log, ERRNO=number, **faults)
      name = "went on" if status == 0 else "ended with a line"
      if not log.exists() or not log.stat().st_size:
        name = "no call failed"
      said = output.read_text()
      again = train()
      same = again == 0 and status in (0, 1, 2) and "Traceback" not in said
      if same:
        found = _restored(workdir, LONG), _losses(workdir)
        same = all(map(_same, found[0], expected[0])) and found[1] == expected[1]
      if not same:
        wrong += 1
        shutil.copy(output, root / f"wrong-{case}.log")
        told = f"{errno.errorcode[number]}, {faults}: status {status}, then {again}"
        console.print(f"case {case}: {told}; {root}/wrong-{case}.log", highlight=False)
      outcomes[name if same else "wrong"] += 1
      advance(case + 1, ", ".join(f"{n}: {k}" for n, k in outcomes.items()))
  result = ", ".join(f"{name}: {k}" for name, k in sorted(outcomes.items()))
  return count, result, "none wrong", not wrong


def _straight(workdir: Path, processes: int) -> float:
  """Trains without signals, twice, so that the second finds compiled programs; its seconds."""
  for _ in range(2):
    shutil.rmtree(workdir, ignore_errors=True)
    started = time.perf_counter()
    for process in _start(workdir, processes):
      if process.wait(600):
        raise SystemExit(f"{workdir}: training failed; see {workdir}.log")
  return time.perf_counter() - started


def _start(
  workdir: Path, processes: int, more: dict[str, str] | None = None
) -> list[subprocess.Popen]:
  """Starts, or continues, a training in processes of its own; `more` is for their environment."""
  config, texts = ROOT / "configs" / "demo.py", f"--config.data.path={ROOT / 'docs'}"
  command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", texts]
  command += [*FLAGS, f"--config.train.steps={LONG}", "--config.train.eval_every=8"]
  command += ["--config.train.eval_documents=1", "--config.train.log_every=1"]
  command += [f"--config.run.compilation_cache={workdir.parent / 'programs'}"]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  started = []
  for i in range(processes):
    where = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"]
    with open(f"{workdir}.log", "a") as log:
      started.append(
        subprocess.Popen(
          command + where * (processes > 1),
          cwd=ROOT,
          stdout=log,
          stderr=log,
          env=os.environ | {"JAX_PLATFORMS": "cpu"} | PATIENCE | (more or {}),
        )
      )
  return started


def _ended(started: list[subprocess.Popen], seconds: float) -> bool:
  """Whether the processes end by themselves in this time."""
  try:
    started[0].wait(seconds)
  except subprocess.TimeoutExpired:
    return False
  return True


def _signalled(started: list[subprocess.Popen], which: int, number: signal.Signals) -> Ended:
  """Sends the signal to one process, and waits until all have ended."""
  since, listened = time.perf_counter(), _listens(started[which].pid)
  started[which].send_signal(number)
  for process in started:
    process.wait(300)
  return Ended(time.perf_counter() - since, started[which].returncode, listened)


def _listens(process: int) -> bool:
  """Whether a process has a handler for SIGTERM (Linux)."""
  lines = Path(f"/proc/{process}/status").read_text().splitlines()
  caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
  return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _losses(run: Path) -> list[tuple[int, str, float]]:
  """The losses of all steps, and the perplexities of all validations."""
  kinds = {"train": "loss", "validation": "perplexity"}
  return [(m["step"], kind, m[key]) for kind, key in kinds.items() for m in read_metrics(run, kind)]


def damage(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """Restores the newest checkpoint, with one file changed, in all ways."""
  run, rng = trained(root, console), random.Random(seed)
  newest = run / "checkpoints" / str(STEPS)
  files = sorted(file for file in newest.rglob("*") if file.is_file())
  expected, before = _restored(run, STEPS), _restored(run, STEPS // 2)
  outcomes: Counter[str] = Counter()
  with track(console, "damage", len(files) * len(DAMAGES)) as advance:
    for i, file in enumerate(files):
      for k, (name, change) in enumerate(DAMAGES.items()):
        copy = root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        target = copy / file.relative_to(run)
        data = change(file.read_bytes(), rng)
        target.unlink() if data is None else target.write_bytes(data)
        outcome = _outcome(copy, expected, before)
        outcomes[outcome] += 1
        if outcome not in ("unchanged", "the one before"):
          console.print(f"{outcome}: {file.relative_to(newest)}, {name}")
        advance(i * len(DAMAGES) + k + 1)
  shutil.rmtree(root / "copy")
  met = outcomes.keys() <= {"unchanged", "the one before"}
  result = ", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items()))
  return outcomes.total(), result, "unchanged, or the one before", met


def fuzz(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """Random cases of operations, configs, files and requests."""
  command = ["-m", "tests.fuzz", f"--minutes={MINUTES[0]}", f"--seed={seed}"]
  status, last = _program(command, root / "fuzz.log", f"fuzz, {MINUTES[0]:.0f} minutes", console)
  return int(last.split()[0].replace(",", "")), last.split(" cases ")[1], "none failed", not status


def soak(root: Path, seed: int, console: Console) -> tuple[int, str, str, bool]:
  """A long run of a tiny model."""
  command = ["benchmarks/soak.py", f"--workdir={root}/soak", f"--steps={SOAKED[0]}"]
  status, last = _program(command, root / "soak.log", f"soak, {SOAKED[0]:,} steps", console)
  return SOAKED[0], last, "flat", not status


def _program(command: list[str], log: Path, name: str, console: Console) -> tuple[int, str]:
  """Runs a program of its own; returns its exit status, and the last line that it printed."""
  with log.open("w") as file, console.status(f"{name}; {log}"):
    ended = subprocess.run(
      [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
    )
  with log.open("a") as file:
    file.write(ended.stdout)
  return ended.returncode, ended.stdout.strip().split("\n")[-1]


def _restored(run: Path, step: int | None = None) -> list[np.ndarray]:
  """All arrays that a start restores."""
  config = Workdir(run).config()
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh), Checkpoints(Workdir(run)) as saved:
    found = saved.newest_whole(lambda line: None) if step is None else step
    state = saved.restore(found or 0, abstract_state(config, make_optimizer(config), mesh))
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def _outcome(run: Path, expected: list[np.ndarray], before: list[np.ndarray]) -> str:
  """What a start finds in a run whose newest checkpoint is damaged."""
  equal = lambda a, b: len(a) == len(b) and all(map(_same, a, b))
  try:
    found = _restored(run)
  except InputError as error:
    return f"refused ({str(error)[-60:]})"
  except Exception as error:
    return f"a traceback ({type(error).__name__})"
  if equal(found, expected):
    return "unchanged"
  return "the one before" if equal(found, before) else "silently wrong"


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


PARTS = {
  "kill": kill,
  "kill by two": kill_by_two,
  "stop": stop,
  "disk": disk,
  "damage": damage,
  "fuzz": fuzz,
  "soak": soak,
}


if __name__ == "__main__":
  sys.exit(main())
