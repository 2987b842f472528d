"""The kernels of the memory compile for TPUs and GPUs that are not there, and move few bytes.

Each test takes seconds to a minute. libtpu takes a lock, so run one at a time.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDS = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "gpu-plan")}

# A layer of the paper's size, forward and backward: gigabytes of HBM, of the memory's and of all.
LAYER = """
import json, sys
import jax, jax.numpy as jnp
from infini_jax.ops.attention import PLAIN, to_segments
from infini_jax.ops.infini import infini_attention
from infini_jax.ops.local import LocalAttention
from infini_jax.plan.gpus import cudnn_of, gpu_devices
from infini_jax.plan.hbm import moved
from infini_jax.plan.tpus import tpu_devices

topology, rule, more, E, dtype = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
gpu = topology.startswith("h")
devices = gpu_devices(topology) if gpu else tpu_devices(topology)
B, T, N, H, K, E = 1, 32768, 2048, 8, 4 if more else 8, int(E)
mesh = jax.make_mesh((1,), ("data",), devices=devices[:1], axis_types=(jax.sharding.AxisType.Auto,))
place = jax.sharding.NamedSharding(mesh, jax.P())
shaped = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
options = {
  "reset_BS": shaped(B, T // N, dtype="bool"),
  "mask_BT": shaped(B, T, dtype="bool"),
  "write_BTK": shaped(B, T, K, dtype="float32"),
} if more else {}

def memory(q, k, v, beta, options):
  return infini_attention(q, k, v, beta, segment_length=N, rule=rule, rope_theta=1e4,
    attention="cudnn" if gpu else "splash", implementation="kernels", **options)[0]

def local(q, k, v, beta, options):
  attention = LocalAttention(1e4, "splash", PLAIN)
  return attention(*(to_segments(x, N) for x in (q, k, v)), None).reshape(q.shape)

def bytes_of(layer):
  def both(q, k, v, beta, d, options):
    out, back = jax.vjp(lambda *x: layer(*x, options), q, k, v, beta)
    return out, back(d)
  q, k = shaped(B, T, H, E), shaped(B, T, K, E)
  with jax.set_mesh(mesh), cudnn_of(devices):
    step = jax.jit(both).lower(q, k, k, shaped(H, dtype="float32"), q, options).compile()
  text = step.as_text()
  names = [name for name in ("read", "write", "erase", "rotate") if "infini_" + name in text]
  return sum(one.bytes for one in moved(text)), names

whole, names = bytes_of(memory)
alone = 0 if gpu or more else bytes_of(local)[0]
print(json.dumps({"bytes": whole - alone, "names": names}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind,topology,rule,more,E,dtype,most",
  [
    # What must be read and written at least is 940 MB with the linear rule.
    ("tpu", "v5e:2x2", "linear", "", 128, "bfloat16", 1.25 * 940e6),
    ("tpu", "v5e:2x2", "delta", "", 128, "bfloat16", 2e9),
    ("tpu", "v5e:2x2", "delta", "more", 128, "bfloat16", None),
    ("tpu", "v5p:2x2x1", "delta", "more", 128, "bfloat16", None),
    ("tpu", "v6e:2x2", "delta", "more", 128, "bfloat16", None),
    # Wide heads and float32 take the most memory of the chip.
    ("tpu", "v5e:2x2", "delta", "more", 256, "bfloat16", None),
    ("tpu", "v5e:2x2", "delta", "more", 128, "float32", None),
    ("tpu", "v5e:2x2", "delta", "more", 256, "float32", None),
    ("gpu", "h100:1", "linear", "", 128, "bfloat16", None),
    ("gpu", "h100:1", "delta", "more", 128, "bfloat16", None),
  ],
)
def test_the_kernels_compile_and_move_few_bytes(kind, topology, rule, more, E, dtype, most):
  package, extra = NEEDS[kind]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f"{package} is not installed: pip install '.[{extra}]'")
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  done = subprocess.run(
    [sys.executable, "-c", LAYER, topology, rule, more, str(E), dtype],
    cwd=ROOT, env=env, text=True, capture_output=True, timeout=1200,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  names = ["read", "write"] + ["erase"] * (rule == "delta") + ["rotate"] * (kind == "tpu")
  assert found["names"] == names, "a kernel is not in the program: what does `auto` choose?"
  if most is not None:
    assert found["bytes"] <= most, (
      f"the memory path moves {found['bytes'] / 1e6:,.0f} MB, more than {most / 1e6:,.0f}: "
      f"see benchmarks/plan_step.py for what moves them"
    )
