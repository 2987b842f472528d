"""Infini-attention with random shapes and options, against the loops in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from infini_jax.ops import MemoryState, Rule, infini_attention
from infini_jax.ops import memory as memory_module
from infini_jax.ops import stream as stream_module
from infini_jax.ops.attention import Segment
from infini_jax.ops.infini import no_kernels
from tests.ops import reference

DRAWS = 4  # random arrays for each compiled program


def case(rng: np.random.Generator, folder: Path) -> str:
  """One set of shapes and options: values and gradients of a form, for some random arrays."""
  sizes = {name: int(rng.integers(1, most + 1)) for name, most in LARGEST.items()}
  sizes["E"] *= 2  # rotary positions turn pairs
  rule, options = some_rule(rng), {"rope_theta": [None, 10.0, 1e4][rng.integers(3)]}
  N = int(rng.integers(1, 7))
  forms = ["scan", "parallel", "stream", "mesh"]
  if no_kernels("cpu", N, sizes["E"], sizes["U"], rule) is None:
    forms += ["kernels"] * 3  # most rules have no kernels
  form = str(rng.choice(forms))
  with_write, with_own = rng.random(2) < 0.4
  mesh = some_mesh(rng, sizes, N) if form == "mesh" else None
  if mesh is not None and mesh.shape["seq"] > 1:
    rule = rule._replace(z_correction=False)  # it reads z before every token
  ours = program(ours_of(form, N, rule, options), np.float32)
  with jax.enable_x64(True):
    loops = program(partial(loops_of, N=N, rule=rule, options=options), np.float64)
  for _ in range(DRAWS):
    arrays = draw(rng, sizes, N, with_write, with_own)
    B, T = arrays["q"].shape[:2]
    flags = {"reset": rng.random((B, -(-T // N))) < 0.3, "mask": rng.random((B, T)) < 0.8}
    flags["mask"][:, ::N] = True  # so that each query sees a key
    if form == "stream":
      flags = {"reset": np.zeros_like(flags["reset"]), "mask": np.ones_like(flags["mask"])}
    weights = {name: rng.standard_normal(shape) for name, shape in outputs(arrays).items()}
    with jax.enable_x64(True):
      (_, expected), slopes = jax.tree.map(np.asarray, loops(arrays, flags, weights))
    single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    given = single(arrays), flags, single(weights)
    if mesh is None:
      (_, got), grads = ours(*given)
    else:
      with jax.set_mesh(mesh):
        (_, got), grads = ours(*jax.tree.map(jax.device_put, given, placed(given, mesh)))
    for name, value in got.items():
      close(value, expected[name], 1e-4, f"{form}: {name}")
    for name, value in grads.items():
      close(value, slopes[name], 1e-3, f"{form}: gradient of {name}")
  return f"{form}, {rule.name}"


ORDER = ("q", "k", "v", "beta", "M", "z", "write", "own_q", "own_k", "own_v")
LARGEST = {"B": 3, "T": 17, "K": 3, "G": 3, "E": 4, "U": 8}


def some_mesh(rng: np.random.Generator, sizes: dict[str, int], N: int) -> Mesh:
  """A mesh of up to eight devices; changes the sizes so that they can be divided over it."""
  shape = [(1, 2, 1), (2, 2, 2), (1, 4, 2), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 1, 1)]
  data, seq, tensor = shape[rng.integers(len(shape))]
  sizes["B"], sizes["K"] = data * int(rng.integers(1, 3)), tensor * int(rng.integers(1, 3))
  sizes["T"] = seq * N * int(rng.integers(1, 3))
  devices = jax.devices()[: data * seq * tensor]
  return jax.make_mesh((data, seq, tensor), AXES, (AxisType.Explicit,) * 3, devices=devices)


AXES = ("data", "seq", "tensor")
STATE = PartitionSpec("data", "tensor")


def placed(given, mesh: Mesh):
  """How arrays, flags and weights of outputs are placed on a mesh."""
  arrays, flags, weights = given
  place = lambda tree, specs, other: {
    name: jax.NamedSharding(mesh, specs.get(name, other)) for name in tree
  }
  state = {"M": STATE, "z": STATE}
  token = PartitionSpec(*AXES)
  beta = {"beta": PartitionSpec("tensor")}
  return (
    place(arrays, state | beta, token),
    place(flags, {}, PartitionSpec("data", "seq")),
    place(weights, state, token),
  )


def some_rule(rng: np.random.Generator) -> Rule:
  """A rule with random options."""
  flag = lambda: bool(rng.random() < 0.3)
  return Rule(
    str(rng.choice(["linear", "delta"])),
    gate=str(rng.choice(["sigmoid", "hard_sigmoid"])),
    scale_first_segment=flag(),
    normalize_keys=flag(),
    z_correction=flag(),
    decay=float(rng.choice([1.0, 0.7, 0.99])),
    readout_norm=flag(),
  )


def draw(rng, sizes, N: int, with_write: bool, with_own: bool) -> dict[str, np.ndarray]:
  """Random arrays, and a memory that holds a few tokens."""
  B, T, K, G, E, U = sizes.values()
  f = lambda *shape: rng.standard_normal(shape)
  arrays = {"q": f(B, T, K * G, E), "k": f(B, T, K, E), "v": f(B, T, K, U), "beta": f(K * G)}
  k = np.asarray(reference.sigma(f(B, 3, K, E)), np.float64)
  arrays |= {"M": np.einsum("BTKE,BTKU->BKEU", k, f(B, 3, K, U)), "z": k.sum(1)}
  if with_write or with_own:
    arrays["write"] = np.clip(rng.normal(0.5, 0.6, (B, T, K)), 0, 1)
    arrays["write"][:, ::N] = rng.uniform(0.1, 1, arrays["write"][:, ::N].shape)
  if with_own:
    arrays |= {"own_q": f(B, T, K * G, E), "own_k": f(B, T, K, E), "own_v": f(B, T, K, U)}
  return arrays


def outputs(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
  """The shapes of the outputs."""
  out = (*arrays["q"].shape[:3], arrays["v"].shape[-1])
  return {"out": out, "M": arrays["M"].shape, "z": arrays["z"].shape}


def program(f, dtype):
  """A weighted sum of the outputs with its gradient, compiled once."""

  def loss(arrays, flags, weights):
    out, M, z = f(arrays, **flags)
    got = {"out": out * flags["mask"][..., None, None].astype(dtype), "M": M, "z": z}
    return sum((got[name] * weights[name]).sum() for name in got), got

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loops_of(arrays, reset, mask, *, N: int, rule: Rule, options):
  """The reference."""
  return reference.infini_attention(
    *(arrays[name] for name in ORDER if name in arrays),
    reset=reset,
    mask=mask,
    segment_length=N,
    rule=rule,
    cut=False,
    **options,
  )


def ours_of(form: str, N: int, rule: Rule, options):
  """A form of the package."""

  def run(arrays, reset, mask):
    q, k, v, beta, M, z = (arrays[name] for name in ORDER[:6])
    more = {"write_BTK": arrays["write"]} if "write" in arrays else {}
    if "own_q" in arrays:
      more["own"] = tuple(arrays[name] for name in ("own_q", "own_k", "own_v"))
    if form != "stream":
      out, state = infini_attention(
        q, k, v, beta, MemoryState(M, z), segment_length=N, rule=rule, reset_BS=reset,
        mask_BT=mask, implementation="auto" if form == "mesh" else form, **options, **more,
      )  # fmt: skip
      return out, state.M_BKEU, state.z_BKE
    B, _, K, E = k.shape
    empty = Segment(
      jnp.zeros((B, N, K, E)), jnp.zeros((B, N, K, v.shape[-1])), jnp.zeros(B, jnp.int32)
    )
    stream = stream_module.open_stream(MemoryState(M, z), empty, rule)

    def token(stream, xs):
      q, k, v, more = jax.tree.map(lambda x: x[:, None], xs)
      out, stream = stream_module.extend_stream(
        q, k, v, beta, stream, jnp.ones((B, 1), bool), rule=rule, **options, **more
      )
      return stream, out[:, 0]

    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, more))
    stream, out = jax.lax.scan(token, stream, xs)
    M, z = memory_module.commit(stream.memory, stream.pending, rule)
    return jnp.moveaxis(out, 0, 1), M, z

  return run


def close(got, expected, tolerance: float, name: str) -> None:
  """Compares relative to the size of the array."""
  scale = max(1.0, float(np.abs(expected).max(initial=0)))
  np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name)
