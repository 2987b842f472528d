"""A sequence over several devices equals the same sequence on one: output, state and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from infini_jax.ops import MemoryState, Rule, infini_attention, shards
from infini_jax.ops.loss import divergence
from tests.tiny import array

B, S, N, K, G, E, U = 2, 8, 4, 2, 2, 4, 6
H, T = K * G, S * N
MESHES = {"seq8": (1, 8, 1), "seq4": (2, 4, 1), "seq2": (2, 2, 2)}


def mesh(sizes):
  axes = ("data", "seq", "tensor")
  devices = jax.devices()[: int(np.prod(sizes))]
  return jax.make_mesh(sizes, axes, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def place(values, specs, on):
  put = lambda x, spec: jax.device_put(x, jax.NamedSharding(on, spec))
  return jax.tree.map(put, values, specs)


# Fast tests have each way of carrying once, with different sizes, and each rule once.
RULES = {
  "linear": Rule("linear"),
  "delta": Rule("delta"),
  "linear-decay": Rule("linear", decay=0.8),
  "delta-all": Rule("delta", True, decay=0.7),
}
FAST = {("seq8", "gathered", "delta-all"), ("seq4", "doubling", "linear-decay")}


@pytest.mark.parametrize(
  "sizes,gathered,rule",
  [
    pytest.param(
      sizes,
      gathered,
      rule,
      id=f"{name}-{way}-{of}",
      marks=[pytest.mark.slow] * ((name, way, of) not in FAST),
    )
    for name, sizes in MESHES.items()
    for way, gathered in (("gathered", 8), ("doubling", 1))
    for of, rule in RULES.items()
  ],
)
def test_infini_attention_over_devices_equals_one(rng, monkeypatch, sizes, gathered, rule):
  monkeypatch.setattr(shards, "GATHERED", gathered)
  over_devices_as_on_one(rng, sizes, rule, "parallel")


def test_kernels_over_devices_equal_plain_jax_on_one(rng):
  over_devices_as_on_one(rng, MESHES["seq2"], Rule("delta", decay=0.7), "kernels")


def over_devices_as_on_one(rng, sizes, rule, implementation):
  """Compares values and gradients of a divided sequence with those of plain JAX on one device."""
  f = lambda *shape: array(rng.standard_normal(shape), jnp.float32)
  memory = MemoryState(f(B, K, E, U), jnp.abs(f(B, K, E)) + 0.1)
  arrays = (f(B, T, H, E), f(B, T, K, E), f(B, T, K, U), f(H), memory)
  mask = rng.random((B, T)) < 0.8
  mask[:, ::N] = True
  mask[1, 2 * N : 3 * N] = False  # a whole segment of padding
  flags = (array(mask), array(rng.random((B, S)) < 0.3))
  weights = (f(B, T, H, U), MemoryState(f(B, K, E, U), f(B, K, E)))

  def loss(arrays, flags, weights, implementation="parallel"):
    *qkv, beta, memory = arrays
    outs = infini_attention(
      *qkv, beta, memory, segment_length=N, rule=rule, rope_theta=50.0,
      mask_BT=flags[0], reset_BS=flags[1], implementation=implementation,
    )  # fmt: skip
    products = jax.tree.map(lambda o, w: (o * w).sum(), outs, weights)
    return jax.tree.reduce(jnp.add, products), outs

  graded = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)
  (_, expected), expected_grads = graded(arrays, flags, weights)
  token, state = P("data", "seq", "tensor"), MemoryState(*(P("data", "tensor"),) * 2)
  on = mesh(sizes)
  specs = ((token, token, token, P("tensor"), state), (P("data", "seq"),) * 2, (token, state))
  with jax.set_mesh(on):
    (_, got), grads = graded(*place((arrays, flags, weights), specs, on), implementation)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
  jax.tree.map(close, got, expected)
  jax.tree.map(close, grads, expected_grads)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("gathered", [8, 1])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_carry_is_the_recurrence(rng, monkeypatch, size, gathered, matrix):
  monkeypatch.setattr(shards, "GATHERED", gathered)
  A = rng.standard_normal((size, E, E) if matrix else (size,)).astype(np.float32)
  b, start = (rng.standard_normal(s).astype(np.float32) for s in ((size, E, U), (E, U)))
  expected = [start.astype(np.float64)]
  for step in range(size):
    expected.append((A[step] @ expected[-1] if matrix else A[step] * expected[-1]) + b[step])

  def run(A, b):
    before, last = shards.carry((A[0], b[0]), array(start), "seq")
    return before[None], last

  on = mesh((1, size, 1))
  with jax.set_mesh(on):
    specs = {"in_specs": P("seq"), "out_specs": (P("seq"), P())}
    Ab = place((A, b), (P("seq"), P("seq")), on)
    before, last = jax.jit(jax.shard_map(run, check_vma=False, **specs))(*Ab)
  np.testing.assert_allclose(before, np.stack(expected[:-1]), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(last, expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "tokens,options,message",
  [
    (28, {}, r"28 tokens over 4 devices .* give a multiple of 16"),
    (32, {"implementation": "scan"}, "cannot divide a sequence over devices: use 'parallel'"),
    (32, {"rule": Rule("delta", z_correction=True)}, "z_correction .* cannot divide a sequence"),
  ],
)
def test_what_cannot_be_divided_is_named(rng, tokens, options, message):
  zeros = [np.zeros((B, tokens, heads, E), np.float32) for heads in (H, K, K)]
  on = mesh((1, 4, 1))
  with jax.set_mesh(on), pytest.raises(ValueError, match=message):
    qkv = place(zeros, [P(None, "seq")] * 3, on)
    infini_attention(*qkv, jnp.zeros(H), segment_length=N, **options)


# Fast tests have each pair of two of the three choices.
@pytest.mark.parametrize(
  "V,chunk,columns",
  [
    pytest.param(
      V,
      chunk,
      columns,
      id=f"{'whole' if columns is None else 'columns apart'}-{chunk}-{how}",
      marks=[pytest.mark.slow] * ((V == 64) ^ (chunk == 3) ^ (columns is None)),
    )
    for V, how in ((16, "head gathered"), (64, "vocabulary divided"))
    for chunk in (3, 1024)
    for columns in (("fsdp", "seq"), None)
  ],
)
def test_loss_over_devices_equals_one(rng, V, chunk, columns):
  D, T = 8, 32  # 6 * T is under 8 * V where the vocabulary is the larger one
  f = lambda *shape: array(rng.standard_normal(shape), jnp.float32)
  arrays, weights = (f(B, T, D), f(V, D)), f(B, T)
  targets = array(rng.integers(0, V, (B, T)), jnp.int32)

  def loss(arrays, targets, weights):
    told = jax.lax.stop_gradient((jnp.sin(arrays[0]), jnp.cos(arrays[1])))
    nll, log_z, right, apart = divergence(*arrays, targets, *told, chunk=chunk)
    return ((nll + 0.1 * log_z**2 + apart) * weights).sum(), (nll, log_z, apart, right)

  graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, expected), expected_grads = graded(arrays, targets, weights)
  axes = ("fsdp", "seq", "tensor")
  on = jax.make_mesh((2, 2, 2), axes, axis_types=(AxisType.Explicit,) * 3)
  token = P("fsdp", "seq")
  with jax.set_mesh(on):
    specs = ((token, P("tensor", columns)), token, token)
    (_, got), grads = graded(*place((arrays, targets, weights), specs, on))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, (got[:3], grads), (expected[:3], expected_grads))
  np.testing.assert_array_equal(got[3], expected[3])
