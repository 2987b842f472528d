"""What digests add to a save, and what a save in the background adds to a step.

    python benchmarks/save.py [--config=configs/demo.py] [--config.a.b=value ...] [--rounds=20]
        [--json=FILE]

Saves with digests and without take turns, each into an empty folder. `start` is how long training
waits, `whole` how long it takes until the checkpoint is complete.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
from record import Results, add_json

from infini_jax import digests
from infini_jax.config import load_config
from infini_jax.parallel import make_mesh
from infini_jax.progress import make_console, track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import TrainState, initial_state


def main() -> None:
  """Saves in turns, and prints medians and their ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=20)
  add_json(parser)
  args, rest = parser.parse_known_args()
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=configs/demo.py", *rest]
  config, console = load_config(rest), make_console()
  mesh = make_mesh(config.mesh)
  times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
  with jax.set_mesh(mesh), track(console, "save", args.rounds) as advance:
    state = initial_state(config, make_optimizer(config), mesh)
    for round_ in range(args.rounds + 1):
      for with_digests in sorted(times, reverse=bool(round_ % 2)):
        taken = save(state, with_digests)
        if round_:  # the first round is not measured
          times[with_digests].append(taken)
      advance(round_)
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  results = Results(
    f"a state of {size:,.1f} MB, {args.rounds} saves each, medians",
    {"": "", "start ms": ",.1f", "to plain": ".3f", "whole ms": ",.1f", "whole to plain": ".3f"},
  )
  middle = {key: [statistics.median(part) for part in zip(*own)] for key, own in times.items()}  # noqa: B905
  for with_digests, name in ((False, "without digests"), (True, "with digests")):
    pairs = zip(middle[with_digests], middle[False], strict=True)
    results.add(name, *(value for own, plain in pairs for value in (1e3 * own, own / plain)))
  results.show(console)
  results.write(args.json)


def save(state: TrainState, with_digests: bool) -> tuple[float, float]:
  """One save into a new folder; seconds until training continues, and until it is complete."""
  seal = digests.seal if with_digests else lambda *_, **__: None
  with tempfile.TemporaryDirectory() as folder, mock.patch.object(digests, "seal", seal):
    with Checkpoints(Workdir(Path(folder)), keep=1) as saved:
      started = time.perf_counter()
      saved.save(1, state)
      waited = time.perf_counter() - started
      saved.wait()
      return waited, time.perf_counter() - started


if __name__ == "__main__":
  main()
