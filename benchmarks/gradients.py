"""Forms of the sum of gradients over chips: what XLA for TPUs makes of each, without a TPU.

    python benchmarks/gradients.py [--forms=tiled,two,...] [--option=NAME=VALUE ...] [--json=FILE]

A weight is stored in 16 pieces, gathered where it is used, and its gradient is summed over the
chips and cut into pieces again. The program is the feed-forward part of the 1B model, 16 layers in
a scan with full rematerialization and 32,768 tokens a chip, compiled for v5e:4x4. The forms:

    tiled      `psum_scatter`, as the transpose of `all_gather`
    two        the same over one dimension of the torus after the other
    unrolled   `psum_scatter` of a dimension of 16, one row for each chip
    exchange   `all_to_all` and a local sum
    ring       15 steps of `ppermute` and a sum
    products   the same, each step together with the product that computes its piece

`--option` is an option of libtpu's compiler. `sent` is what a chip sends in a step; `operations`
are XLA's collectives of the gradients, `-start` where they overlap with other work. XLA's own rings
(an option) are loops whose length is not found: they count once, and all figures are too small.
"""

import argparse
import re
from collections import Counter

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from record import Results, add_json

from infini_jax.parallel.chips import CHIPS
from infini_jax.plan.hbm import moved
from infini_jax.plan.hlo import communication
from infini_jax.plan.tpus import tpu_devices
from infini_jax.progress import make_console, track

LAYERS, WIDTH, FFN, TOKENS, CHIPS_OF_ALL = 16, 2048, 8192, 32_768, 16
CLOCK = 1.5e9  # Hz of XLA's cycles on v5e
GRADIENT = r"(all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("


def whole(x_TA, dy_TB):
  """The gradient of one chip's tokens."""
  return jnp.einsum("TA,TB->AB", x_TA, dy_TB)


def tiled(x, dy, axes):
  """Over all axes at once, or one after the other."""
  total = whole(x, dy)
  for axis in axes:
    total = jax.lax.psum_scatter(total, axis, scatter_dimension=0, tiled=True)
  return total


def _rows(x, dy):
  return whole(x, dy).reshape(CHIPS_OF_ALL, x.shape[1] // CHIPS_OF_ALL, -1)


def unrolled(x, dy, axes):
  """Of a dimension that has a row for each chip."""
  return jax.lax.psum_scatter(_rows(x, dy), axes, scatter_dimension=0)


def exchange(x, dy, axes):
  """Every chip gets its piece of all others."""
  return jax.lax.all_to_all(_rows(x, dy), axes, 0, 0).sum(0)


def ring(x, dy, axes, piece=None):
  """A piece goes around, and every chip adds its own."""
  rows_SAB = None if piece else _rows(x, dy)
  piece = piece or (lambda i: jax.lax.dynamic_index_in_dim(rows_SAB, i, 0, keepdims=False))
  following = [(i, (i + 1) % CHIPS_OF_ALL) for i in range(CHIPS_OF_ALL)]
  here = jax.lax.axis_index(axes)
  total = piece((here - 1) % CHIPS_OF_ALL)
  for step in range(1, CHIPS_OF_ALL):
    own = piece((here - 1 - step) % CHIPS_OF_ALL)
    total = jax.lax.ppermute(total, axes, following) + own
  return total


def products(x, dy, axes):
  """The ring, with a product for each piece."""
  size = x.shape[1] // CHIPS_OF_ALL
  cut = lambda i: jax.lax.dynamic_slice_in_dim(x, i * size, size, 1)
  return ring(x, dy, axes, lambda i: whole(cut(i), dy))


FORMS = {
  "tiled": tiled,
  "two": tiled,
  "unrolled": unrolled,
  "exchange": exchange,
  "ring": ring,
  "products": products,
}


def lowered(name: str):
  """The gradient of all weights, with this form, for v5e:4x4."""
  sides = {"x": 4, "y": 4} if name == "two" else {"x": CHIPS_OF_ALL}
  axes, types = tuple(sides), (AxisType.Auto,) * len(sides)
  mesh = jax.make_mesh([*sides.values()], axes, devices=tpu_devices("v5e:4x4"), axis_types=types)

  def gathered(weight):
    for axis in reversed(axes):
      weight = jax.lax.all_gather(weight, axis, axis=0, tiled=True)
    return weight

  @jax.custom_vjp
  def product(x, weight):
    return x @ gathered(weight)

  def backward(saved, dy):
    x, weight = saved
    return dy @ gathered(weight).T, FORMS[name](x, dy, axes)

  product.defvjp(lambda x, weight: (product(x, weight), (x, weight)), backward)

  def layer(x, weights):
    up, gate, down = (weight.astype(jnp.bfloat16) for weight in weights)
    return x + product(product(x, up) * jax.nn.silu(product(x, gate)), down), None

  def loss(weights, x):
    y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  stored, tokens = (P(None, axes),) * 3, P(axes)
  shaped = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, spec)
  )
  into, out = (LAYERS, WIDTH, FFN), (LAYERS, FFN, WIDTH)
  weights = tuple(shaped(shape, "float32", stored[0]) for shape in (into, into, out))
  options = {"mesh": mesh, "in_specs": (stored, tokens), "out_specs": stored, "check_vma": False}
  step = jax.jit(jax.shard_map(jax.grad(loss), **options))
  return step.lower(weights, shaped((CHIPS_OF_ALL * TOKENS, WIDTH), "bfloat16", tokens))


def main() -> None:
  """Compiles each form, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--forms", default=",".join(FORMS), help="default %(default)s")
  parser.add_argument("--option", action="append", default=[], help="NAME=VALUE, for libtpu")
  add_json(parser)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  console, rate = make_console(), CHIPS["v5e"].memory_rate
  columns = {"form": "", "estimated ms": ",.1f", "GB sent": ".2f", "GB of HBM": ",.2f"}
  columns |= {"peak GiB": ".2f", "operations": "", "loops counted once": "d"}
  results = Results(" ".join(["v5e:4x4", *args.option]), columns)
  for name in args.forms.split(","):
    with track(console, name):
      options = dict(option.split("=", 1) for option in args.option)
      program = lowered(name).compile(compiler_options=options)
    text = program.as_text()
    rows = moved(text, CLOCK)
    ms = 1e3 * sum(max(row.bytes / rate, row.seconds) for row in rows)
    kinds = Counter("".join(found.groups("")) for found in re.finditer(GRADIENT, text))
    sent = communication(text, CHIPS_OF_ALL)
    peak = program.memory_analysis().peak_memory_in_bytes / 2**30
    operations = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    moved_GB = sum(row.bytes for row in rows) / 1e9
    values = ms, sent.bytes / 1e9, moved_GB, peak, operations, sent.unknown_loops
    results.add(name, *values)
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  main()
