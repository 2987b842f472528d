"""Recall of pass keys after text that was read, and after the same length of fast-forwarded text.

    python benchmarks/fast_forward.py --workdir=runs/passkey --lengths=65536,262144 --growth=1.1,1.2

The same parameters are evaluated on the same keys from both states. If the figures agree, a
companion that fast-forwards (config.warm.growth) trains what a text of that length needs. The last
columns show the difference of the states: the mean of |log(z / z')|, and of |M/z - M'/z'| relative
to M/z, each for the first and the last layer.
"""

import argparse
import sys

import jax
import numpy as np
from rich.table import Table

from infini_jax.data.lanes.warm import counts
from infini_jax.models import abstract_params, bind
from infini_jax.ops.memory import fast_forward
from infini_jax.parallel import make_mesh
from infini_jax.progress import make_console, track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import make_task

ASKED = (
  300  # the last tokens of a text, which are read to answer: end of the filler, question, answer
)
CHUNK = 16  # segments of one chunk


def main() -> int:
  """Prints the table; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = lambda kind: lambda text: [kind(part) for part in text.split(",")]
  parser.add_argument("--workdir", required=True, help="the run, trained on the pass key")
  parser.add_argument("--lengths", type=numbers(int), default=[65_536, 262_144])
  parser.add_argument("--depths", type=numbers(float), default=[0.0, 0.5, 1.0])
  parser.add_argument("--growth", type=numbers(float), default=[1.2])
  parser.add_argument("--segments", type=int, default=4, help="segments of a fast-forwarded piece")
  parser.add_argument("--samples", type=int, default=12, help="keys for each length and depth")
  args = parser.parse_args()
  console = make_console()
  bench = Bench(args.workdir, args.samples)
  ways = ["read", *(f"growth {g:g}" for g in args.growth)]
  made = Table(title=f"whole keys recalled, {args.samples} a cell")
  apart = [f"{what}, {way}" for way in ways[1:] for what in ("z apart", "M/z apart")]
  for name in ("tokens", "depth", *ways, *apart):
    made.add_column(name, justify="right")
  with track(console, "read", len(args.lengths) * len(args.depths)) as advance:
    for length in args.lengths:
      for depth in args.depths:
        read, state = bench.read(length, depth)
        row, distances = [f"{read:.2f}"], []
        for growth in args.growth:
          share, other = bench.forward(length, depth, growth, args.segments)
          row.append(f"{share:.2f}")
          distances += distance(state, other)
        made.add_row(f"{length:,}", f"{depth:g}", *row, *distances)
        advance(made.row_count, "")
  console.print(made)
  return 0


class Bench:
  """The model of a run, and texts with one key each, one per lane."""

  def __init__(self, workdir: str, lanes: int):
    run = Workdir(workdir)
    self.config, self.lanes = run.config(), lanes
    self.task = make_task(self.config, "passkey", run.load_tokenizer())
    mesh = make_mesh(self.config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh), Checkpoints(run) as saved:
      params, _ = saved.restore_params(abstract_params(self.config.model, mesh))
    self.params = jax.device_get(params)
    model = lambda params: bind(self.config.model, params)
    self._read = jax.jit(lambda params, tokens, state: model(params)(tokens, state)[1])
    self._forward = jax.jit(jax.vmap(fast_forward, (0, 0, None)))
    self._logits = jax.jit(
      lambda params, tokens, state, mask: model(params).logits(
        model(params)(tokens, state, mask_BT=mask)[0]
      )
    )

  def read(self, length: int, depth: float):
    """The fraction of keys recalled if every token is read, and the state before the question."""
    texts, chunk = self._texts(length, length, depth), CHUNK * self.config.model.segment_length
    last = (length - ASKED) // chunk * chunk
    state = self._start()
    for start in range(0, last, chunk):
      state = self._read(self.params, self._tokens(texts, start, start + chunk), state)
    return self._answered(texts, state, last), state

  def forward(self, length: int, depth: float, growth: float, segments: int):
    """The same with pieces that are counted several times. The piece with the key counts once."""
    piece = segments * self.config.model.segment_length
    times = list(counts((length - ASKED) / piece, growth))
    place = int(np.searchsorted(np.cumsum(times) * piece, depth * length)) if depth < 1 else None
    if place:  # 0: the key is in the first piece, which counts once anyway
      times.insert(place, 1.0)
    total = len(times) * piece + ASKED
    texts = self._texts(length, total, depth if place is None else (place + 0.2) * piece / total)
    state = self._start()
    for i, count in enumerate(times):
      after = self._read(self.params, self._tokens(texts, i * piece, (i + 1) * piece), state)
      state = self._forward(state, after, np.full(self.lanes, count, np.float32))
    return self._answered(texts, state, len(times) * piece), state

  def _start(self):
    return bind(self.config.model, self.params).state(self.lanes)

  def _texts(self, seed: int, length: int, depth: float):
    rng = np.random.default_rng(seed)  # keys are drawn first, so they are the same for a seed
    return [self.task.example(rng, length, depth, held_out=True) for _ in range(self.lanes)]

  def _tokens(self, texts, start: int, stop: int):
    bos = [self.task.tokenizer.bos] * (start == 0)
    rows = [np.concatenate([bos, text.read(max(0, start - 1), stop - 1)]) for text in texts]
    return np.stack(rows).astype(np.int32)

  def _answered(self, texts, state, start: int) -> float:
    N, length = self.config.model.segment_length, len(texts[0])
    padding = ((0, 0), (0, -(length - start) % N))
    tokens = np.pad(self._tokens(texts, start, length), padding)
    mask = np.pad(np.ones((self.lanes, length - start), bool), padding)
    logits = self._logits(self.params, tokens, state, mask)
    guess = np.asarray(logits.argmax(-1))[:, : length - start]
    right = [
      (guess[b] == text.read(start, length))[text.asked(start, length)].all()
      for b, text in enumerate(texts)
    ]
    return float(np.mean(right))


def distance(one, other) -> list[str]:
  """The differences of two stacked states in z and in M/z, for the first and the last layer."""
  z, z_other = np.asarray(one.z_BKE), np.asarray(other.z_BKE)
  rows, rows_other = one.M_BKEU / z[..., None], other.M_BKEU / z_other[..., None]
  ends = [0, len(z) - 1]
  of_z = [np.abs(np.log(z[i] / z_other[i])).mean() for i in ends]
  of_rows = [np.abs(rows[i] - rows_other[i]).mean() / np.abs(rows[i]).mean() for i in ends]
  return [", ".join(f"{x:.3f}" for x in values) for values in (of_z, of_rows)]


if __name__ == "__main__":
  sys.exit(main())
