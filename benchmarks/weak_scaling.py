"""The data that a chip sends for the memory as the `seq` axis grows, at fixed tokens per chip.

    python benchmarks/weak_scaling.py [--axes=8,16,32,64,128,256] [--segments=2,8] [--json=FILE]

The Infini-attention of one layer, forward and backward, is compiled for a mesh of CPU devices with
an axis of each size (nothing is run). The collectives are counted in XLA's program. Only the memory
sends data along the axis, so all of them belong to it. Two lengths T are compiled for each axis.
The bytes must not depend on T, and must grow at most like the logarithm of the axis.
"""

import argparse
import json
import math
import os

from infini_jax.paths import file_to_write

SEGMENT = 32  # tokens; the bytes do not depend on it either
HEADS, KV_HEADS, HEAD_DIM = 8, 8, 128  # as in the paper's language model


def compiled_bytes(rule: str, devices: int, segments: int) -> float:
  """Bytes that one chip sends in a forward and backward pass of one layer and one lane.

  Args:
    rule: 'linear' or 'delta'.
    devices: the number of devices along `seq`.
    segments: the number of segments on each device.
  """
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from infini_jax.config import MeshConfig
  from infini_jax.ops import infini_attention
  from infini_jax.parallel import make_mesh
  from infini_jax.plan.hlo import communication

  mesh = make_mesh(MeshConfig(data=1, seq=devices), jax.devices()[:devices])

  def loss(q, k, v, beta):
    out, memory = infini_attention(q, k, v, beta, segment_length=SEGMENT, rule=rule)
    return (out.astype(jnp.float32) ** 2).sum() + (memory.M_BKEU**2).sum()

  with jax.set_mesh(mesh):
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    T = devices * segments * SEGMENT
    array = lambda heads: jax.ShapeDtypeStruct(
      (1, T, heads, HEAD_DIM), jnp.float32, sharding=place(None, "seq")
    )
    beta = jax.ShapeDtypeStruct((HEADS,), jnp.float32, sharding=place())
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    step = gradient.lower(array(HEADS), array(KV_HEADS), array(KV_HEADS), beta).compile()
  found = communication(step.as_text(), devices)
  assert not found.unknown_loops, "a loop of unknown length: its collectives are not counted"
  return found.bytes


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--axes", default="8,16,32,64,128,256", help="sizes of the seq axis")
  parser.add_argument("--segments", default="2,8", help="segments per chip, for each T")
  parser.add_argument(
    "--json", metavar="FILE", type=file_to_write, help="also write the bytes to this file"
  )
  args = parser.parse_args()
  axes = [int(n) for n in args.axes.split(",")]
  segments = [int(n) for n in args.segments.split(",")]
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = " ".join(
    [
      os.environ.get("XLA_FLAGS", ""),
      f"--xla_force_host_platform_device_count={max(axes)}",
      # The machine code is not run, so it is not optimized. The collectives are decided before.
      "--xla_backend_optimization_level=0",
      "--xla_cpu_use_fusion_emitters=false",
    ]
  )

  from rich.table import Table

  from infini_jax.progress import make_console, track

  console = make_console()
  rows = []
  cases = [(rule, n) for rule in ("linear", "delta") for n in axes]
  with track(console, "compile", len(cases)) as bar:
    for done, (rule, n) in enumerate(cases):
      bar(done, f"{rule}, {n} chips")
      sent = [compiled_bytes(rule, n, s) for s in segments]
      rows.append({"rule": rule, "chips": n, "bytes": sent})
    bar(len(cases))
  first = {row["rule"]: row for row in reversed(rows)}
  table = Table(title=f"sent by a chip for a layer and lane: {KV_HEADS} heads of {HEAD_DIM}")
  lengths = [f"T a chip {s * SEGMENT}, KB" for s in segments]
  for column in ("rule", "chips", *lengths, "grown", "its logarithm"):
    table.add_column(column, justify="left" if column == "rule" else "right")
  for row in rows:
    start = first[row["rule"]]
    grown = row["bytes"][0] / start["bytes"][0]
    logarithm = math.log2(row["chips"]) / math.log2(start["chips"])
    sizes = (f"{size / 1e3:,.1f}" for size in row["bytes"])
    table.add_row(row["rule"], str(row["chips"]), *sizes, f"{grown:.2f}", f"{logarithm:.2f}")
  console.print(table)
  if args.json is not None:
    args.json.write_text(json.dumps(rows, indent=2), "utf-8")


if __name__ == "__main__":
  main()
