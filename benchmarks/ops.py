"""Times single operations forward and backward: local attention, read, write, all rules and forms.

    python benchmarks/ops.py [--tokens=16384] [--segment=1024] [--heads=8] [--kv-heads=4]
                             [--head-dim=64] [--dtype=float32] [--json=FILE]

Rounds are interleaved. Compare only rows of one run. The ceiling is a product of two large matrices
in the same type. The difference is that of a form's outputs and gradients from the parallel form's,
as a share of the largest number.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from record import Results, add_json, spread
from train_step import ceiling

from infini_jax.ops import infini_attention, kernels
from infini_jax.ops import memory as mem
from infini_jax.ops.attention import segment_attention
from infini_jax.ops.infini import no_kernels
from infini_jax.ops.memory import MemoryState
from infini_jax.ops.rule import Rule
from infini_jax.progress import make_console


def main() -> None:
  """Times every operation, forward and with its gradient, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in (("tokens", 16_384), ("segment", 1024), ("heads", 8), ("kv-heads", 4)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--head-dim", type=int, default=64)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rounds", type=int, default=5)
  add_json(parser)
  a = parser.parse_args()
  N, H, K, E = a.segment, a.heads, a.kv_heads, a.head_dim
  S = a.tokens // N
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), a.dtype)
  qkv = draw(1, S * N, H, E), draw(1, S * N, K, E), draw(1, S * N, K, E)
  beta = jnp.zeros(H)
  split = lambda x: x.reshape(1, S, N, *x.shape[2:])
  memory = MemoryState(jnp.ones((1, K, E, E)), jnp.ones((1, K, E)))
  none = jnp.zeros((1, S), bool)

  def whole(rule, form):
    return lambda q, k, v: infini_attention(
      q, k, v, beta, segment_length=N, rule=rule, rope_theta=1e4, implementation=form
    )[0]

  def write(rule):
    def run(q, k, v):
      before, after = mem.prefix(split(k), split(v), memory, none, None, Rule(rule))
      return before.M_BKEU, after.M_BKEU

    return run

  whole_forms = ["parallel", "scan"]
  on = kernels.platform()
  if on != "cpu" and no_kernels(on, N, E, E, Rule()) is None:  # on a CPU they are interpreted
    whole_forms.append("kernels")
  operations = {
    "local attention": lambda q, k, v: segment_attention(*map(split, (q, k, v))),
    "read": lambda q, k, v: mem.read(q, memory),
    **{f"write, {rule}": write(rule) for rule in ("linear", "delta")},
    **{
      f"infini, {rule}, {form}": whole(rule, form)
      for rule in ("linear", "delta")
      for form in whole_forms
    },
  }
  forms = {}
  for name, run in operations.items():
    total = lambda *x, run=run: sum(y.astype(jnp.float32).sum() for y in jax.tree.leaves(run(*x)))
    forms[name] = (jax.jit(run), jax.jit(jax.grad(total, (0, 1, 2))))
  seconds: dict = {}
  ceilings = []
  for round_ in range(a.rounds + 1):
    ceilings.append(ceiling(a.dtype))
    for name, pair in forms.items():
      for i, run in enumerate(pair):
        started = time.perf_counter()
        jax.block_until_ready(run(*qkv))
        if round_:
          seconds.setdefault((name, i), []).append(time.perf_counter() - started)

  results = Results(
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {S * N:,} tokens in segments of "
    f"{N:,}, {H}/{K} heads of {E}, {a.dtype}",
    {
      "operation": "",
      "forward ms": ",.1f",
      "and gradient ms": ",.1f",
      "spread": ".0%",
      "to local attention": ".2f",
      "of the ceiling": ".1%",
      "difference": ".0e",
    },
  )
  middle = {key: statistics.median(values) for key, values in seconds.items()}
  best = statistics.median(ceilings)
  for name in operations:
    forward, both = middle[name, 0], middle[name, 1]
    share = both / middle["local attention", 1]
    # Products of the forward pass, and twice as many for the gradient.
    states = ("read" in name or "infini" in name) * H + ("write" in name or "infini" in name) * K
    states += K * ("delta" in name) * 2
    squares = ("local" in name or "infini" in name) * H * N
    flops = 3 * S * N * E * (2 * E * states + 2 * squares)
    other = name.replace("scan", "parallel").replace("kernels", "parallel")
    apart = None if other == name else difference(forms[name], forms[other], qkv)
    values = 1e3 * forward, 1e3 * both, spread(seconds[name, 1]), share, flops / both / best, apart
    results.add(name, *values)
  results.more["ceiling"] = best
  results.show(make_console())
  results.write(a.json)


def difference(form, other, arrays) -> float:
  """The greatest difference of outputs and gradients, as a share of the greatest number of each."""
  apart = 0.0
  for run, expected in zip(form, other, strict=True):
    pairs = zip(jax.tree.leaves(run(*arrays)), jax.tree.leaves(expected(*arrays)), strict=True)
    for x, y in pairs:
      x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
      apart = max(apart, float(np.abs(x - y).max() / np.abs(y).max()))
  return apart


if __name__ == "__main__":
  main()
