"""Training speed at several lengths, relative to the machine's ceiling and to local attention.

    python benchmarks/train_step.py [--config=configs/demo.py] [--config.a.b=value ...]
    python benchmarks/train_step.py --config=configs/llm_1b.py --lengths=2048,32768,262144 \\
      --tokens=262144 --config.mesh.fsdp=1 --config.mesh.seq=1

The number of lanes at each length is chosen so that every step has the same number of tokens. The
ceiling is the speed of a product of two large matrices in the model's own type, timed between the
steps. Machines are noisy, so rounds are interleaved and medians are shown. Compare rows, not runs
of different days.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from record import Results, add_json, spread

from infini_jax import cpu
from infini_jax.cli import load_config
from infini_jax.config import Config, resolve
from infini_jax.data.lanes.documents import empty_batch
from infini_jax.models.costs import flops_per_token
from infini_jax.parallel import make_mesh, put_batch
from infini_jax.parallel.chips import peak_flops
from infini_jax.progress import make_console
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import initial_state, make_train_step

VARIANTS = {
  "infini, linear": {"model": {"mixer": "infini"}, "infini": {"rule": "linear"}},
  "infini, delta": {"model": {"mixer": "infini"}, "infini": {"rule": "delta"}},
  "local": {"model": {"mixer": "local"}},
}


class Step:
  """A compiled update with its own state and batch."""

  def __init__(self, base: Config, changes: dict, T: int, tokens: int):
    segments = T // base.model.segment_length
    data = {"lanes": tokens // T, "segments": segments, "carry_state": False}
    self.config = config = resolve({**changes, "data": data}, base)
    mesh = make_mesh(config.mesh)
    d, vocabulary = config.data, config.model.vocab_size
    batch = empty_batch(d.lanes, d.segments, config.model.segment_length)
    text = np.random.default_rng(0).integers(0, vocabulary, (d.lanes, T + 1), np.int32)
    batch |= {"tokens_BT": text[:, :-1], "targets_BT": text[:, 1:]}
    batch["mask_BT"][:], batch["reset_BS"][:] = True, False
    with jax.set_mesh(mesh):
      tx = make_optimizer(config)
      self._batch = put_batch(batch, mesh, d.lanes)
      self._state = initial_state(config, tx, mesh)
      step = jax.jit(make_train_step(config, tx), donate_argnums=0)
      self._step = step.lower(self._state, self._batch).compile()
    self.peak = getattr(self._step.memory_analysis(), "peak_memory_in_bytes", 0)

  def __call__(self) -> float:
    """Takes one step; returns seconds."""
    started = time.perf_counter()
    self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - started


def ceiling(dtype: str) -> float:
  """FLOP/s of one large matrix product, best of three."""
  n = 2048 if jax.default_backend() == "cpu" else 8192
  a = jnp.ones((n, n), dtype)
  product = jax.jit(lambda a: a @ a)
  jax.block_until_ready(product(a))
  times = []
  for _ in range(3):
    started = time.perf_counter()
    jax.block_until_ready(product(a))
    times.append(time.perf_counter() - started)
  return 2 * n**3 / min(times)


def main() -> None:
  """Measures all lengths and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--lengths", help="tokens of a sequence, such as 2048,32768")
  parser.add_argument("--tokens", type=int, help="tokens of a step; by default the config's")
  parser.add_argument("--rounds", type=int, default=5)
  add_json(parser)
  args, rest = parser.parse_known_args()
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=configs/demo.py", *rest]
  base, console = load_config(rest), make_console()
  cpu.set_flags(os.environ, base.model.run.compute_dtype)
  T = base.data.segments * base.model.segment_length
  tokens = args.tokens or base.data.lanes * T
  lengths = [int(n) for n in args.lengths.split(",")] if args.lengths else [T]
  devices = jax.device_count()
  results = Results(
    f"{devices} x {jax.devices()[0].device_kind}, jax {jax.__version__}, {tokens:,} tokens "
    f"a step, {base.model.run.compute_dtype}",
    {
      "T": ",",
      "variant": "",
      "ms a step": ",.0f",
      "spread": ".0%",
      "tokens/s": ",.0f",
      "model TFLOP/s": ".3g",
      "of the ceiling": ".1%",
      "MFU": ".1%",
      "time to local": ".3f",
      "peak GiB": ".2f",
    },
  )
  for T in lengths:
    with console.status(f"compiling T={T:,}"):
      steps = {name: Step(base, changes, T, tokens) for name, changes in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ceilings = []
    for round_ in range(args.rounds + 1):
      ceilings.append(ceiling(base.model.run.compute_dtype))
      for name, step in steps.items():
        taken = step()
        if round_:  # the first round is not measured
          seconds[name].append(taken)
    best = statistics.median(ceilings) * devices
    on_device = jax.default_backend() != "cpu"  # on a CPU, XLA's peak omits most of the memory
    local = statistics.median(seconds["local"])
    for name, values in seconds.items():
      median = statistics.median(values)
      c = steps[name].config
      flops = flops_per_token(c.model, T, c.train.part) * tokens / median
      peak = peak_flops(jax.devices()[0].device_kind)
      held = steps[name].peak / 2**30 if on_device else None
      results.add(
        *(T, name, 1e3 * median, spread(values), tokens / median, flops / 1e12, flops / best),
        *(flops / (peak * devices) if peak else None, median / local, held),
      )
    del steps
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  main()
