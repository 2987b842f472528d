"""Speed of generation far into a text and near its beginning, and the memory that it takes.

    python benchmarks/decode.py [--workdir=RUN] [--near=4000] [--far=1000000] [--tokens=300] \\
      [--config=configs/passkey_tiny.py] [--config.a.b=value ...]

Without --workdir the weights of the config's model are random, because only the time is measured.
Three sessions take turns, token by token, so that other work of the machine affects all of them in
the same way. The figures are medians. Two sessions differ only in the length of their text. In the
third session the weights of the layers are stacked, as in training. The share of the ceiling is the
speed at which the weights and the state of a session are read, of that at which one array of the
size of the weights is read. CPU time is that of all threads of the process; on a busy machine it is
more reliable than the clock. Resident memory is that of the process, after the near sessions have
read and written, and again at the end.
"""

import argparse
import gc
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from record import Results, add_json, spread
from rich.console import Console

from infini_jax.cli import load_config
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import OpenedRun, Piece, Session, open_run
from infini_jax.inference.engine import Engine
from infini_jax.models import init
from infini_jax.progress import make_console, track

MB = 1e6


def resident() -> float:
  """Bytes of resident memory of this process, from Linux's /proc."""
  gc.collect()
  return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read(run: OpenedRun, tokens: int, console: Console) -> Session:
  """A session that has read `tokens` random tokens. They are made one piece at a time."""
  rng, most = np.random.default_rng(0), min(run.tokenizer.bos, run.engine.config.model.vocab_size)
  pieces = (rng.integers(0, most, 1000).tolist() for _ in itertools.count())
  session = Session(run, begin=False)
  with track(console, "read", tokens) as bar:
    session.read(itertools.islice(itertools.chain.from_iterable(pieces), tokens), bar)
    session.wait()
  return session


def bandwidth(size: float) -> float:
  """Bytes/s at which one array of so many bytes is read, best of five: the sum of its numbers."""
  x, total = jnp.zeros(max(1, int(size) // 4), jnp.int32), jax.jit(jnp.sum)
  total(x).block_until_ready()
  times = []
  for _ in range(5):
    started = time.perf_counter()
    total(x).block_until_ready()
    times.append(time.perf_counter() - started)
  return 4 * x.size / min(times)


def endless(session: Session) -> Iterator[Piece]:
  """Generates tokens without end."""
  while True:
    yield from session.generate(1000, temperature=0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--workdir", help="a run, instead of random weights")
  parser.add_argument("--near", type=int, default=4000, help="default %(default)s")
  parser.add_argument("--far", type=int, default=1_000_000, help="default %(default)s")
  parser.add_argument("--tokens", type=int, default=300, help="to write (default %(default)s)")
  add_json(parser)
  args, rest = parser.parse_known_args()
  console = make_console()
  if args.workdir:
    run = open_run(args.workdir)
  else:
    if not any(a.startswith("--config=") for a in rest):
      rest = ["--config=configs/passkey_tiny.py", *rest]
    config = load_config(rest)
    params = jax.jit(lambda key: init(config.model, key))(jax.random.key(0))
    run = OpenedRun(Engine(config, params), ByteTokenizer())
  run.tokenizer.eos = -1  # no token ends the generation
  stacked = run._replace(engine=Engine(run.engine.config, run.engine.params, apart=False))

  sessions = [read(run, args.near, console), read(stacked, args.near, console)]
  for session in sessions:
    list(itertools.islice(endless(session), 3))  # compiles
  begun = resident()
  sessions.insert(1, read(run, args.far, console))
  times: list[list[tuple[float, float]]] = [[] for _ in sessions]
  writers = [endless(session) for session in sessions]
  for turn in range(args.tokens + 3):
    for i in sorted(range(3), key=lambda i: (i + turn) % 3):  # noqa: B023
      writer, own = writers[i], times[i]
      started = time.perf_counter(), time.process_time()
      next(writer)
      if turn >= 3:  # the first turns of the far session also finish its reading
        own.append((time.perf_counter() - started[0], time.process_time() - started[1]))
  ended = resident()

  c = run.engine.config.model
  held = sum(x.nbytes for x in jax.tree.leaves(run.engine.params))
  if not c.tied_embeddings:
    held -= run.engine.params["embed_VD"].nbytes  # one row of it is read
  best = bandwidth(held)
  results = Results(
    f"{args.tokens} tokens each, in turns; {jax.devices()[0].device_kind}, jax {jax.__version__}",
    {
      "session": "",
      "position": ",",
      "ms a token": ".3f",
      "spread": ".0%",
      "of the ceiling": ".1%",
      "speed": ".3f",
      "CPU ms a token": ".3f",
      "CPU speed": ".3f",
      "state MB": ".3f",
    },
  )
  names = ("near the beginning", "far into the text", "near, weights stacked")
  columns = [[*zip(*own, strict=True)] for own in times]  # of each session: seconds, CPU seconds
  first, first_cpu = (statistics.median(part) for part in columns[0])
  for name, session, (wall, cpu) in zip(names, sessions, columns, strict=True):
    taken, own = statistics.median(wall), statistics.median(cpu)
    share = (held + session.state_bytes) / taken / best
    values = 1e3 * taken, spread(wall), share, first / taken, 1e3 * own, first_cpu / own
    results.add(name, session.positions[0], *values, session.state_bytes / MB)
  results.more |= {"resident when compiled": begun, "resident at the end": ended}
  results.more |= {"ceiling, bytes/s": best, "bytes of weights": held}
  results.show(console)
  results.write(args.json)
  console.print(
    f"resident: {begun / MB:,.1f} MB when compiled, {ended / MB:,.1f} MB after {args.far:,} tokens "
    f"more, and writing; {run.engine.config.model.mixer} on {jax.devices()[0].device_kind}",
    highlight=False,
  )


if __name__ == "__main__":
  main()
