"""The kernels of the memory equal plain JAX, whatever the order of the axes and the blocks.

`test_infini` compares the whole path with float64 loops. Here kernels are interpreted.
`tests/plan/test_kernels.py` compiles them for TPUs and GPUs that are not there.
"""

from functools import partial

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import systems
from infini_jax.ops import infini, kernels, memory_kernels
from infini_jax.ops.memory import MemoryState, sigma
from infini_jax.ops.memory_kernels import blocks
from infini_jax.ops.rotary import Frequencies, cos_sin, rotate
from infini_jax.ops.rule import Rule
from tests.tiny import array

B, S, N, H, K, E, U = 2, 3, 32, 4, 2, 8, 16
ORDERS = ("BSNHE", "BHSNE", "BSHNE")


@pytest.fixture
def small(monkeypatch):
  """Blocks of 16 tokens, 8 at a time, so that each segment has several."""
  monkeypatch.setattr(blocks, "TOKENS", 16)
  monkeypatch.setattr(blocks, "MULTIPLE", 8)


def arranged(x_BSNHE, order):
  """The same array with its axes in another order."""
  if "K" in order:
    x_BSNHE = x_BSNHE.reshape(B, S, N, K, H // K, -1)
    return jnp.transpose(x_BSNHE, ["BSNKGE".index(letter) for letter in order])
  return jnp.transpose(x_BSNHE, ["BSNHE".index(letter) for letter in order])


def back(x, order):
  """The other way."""
  if "K" in order:
    return jnp.transpose(x, [order.index(letter) for letter in "BSNKGE"]).reshape(B, S, N, H, -1)
  return jnp.transpose(x, [order.index(letter) for letter in "BSNHE"])


def draws(rng, *shapes):
  return [array(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def close(ours, plain, what):
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=2e-6, err_msg=what)


def compare(ours, plain, arrays, weights, what, given=()):
  """Values and gradients of two functions of the same arrays; `given` has no gradient."""

  def graded(f):
    def run(arrays, weights, given):
      out, back = jax.vjp(lambda *arrays: f(*arrays, *given), *arrays)
      return out, back(weights)

    # Random arrays are arguments, so that the compiled program is found again in the next run.
    return jax.jit(run)(arrays, weights, given)

  close(graded(ours), graded(plain), f"{what}: kernel and plain JAX differ")


@pytest.mark.parametrize("order", ORDERS)
def test_write_sums_what_each_token_adds(rng, small, order):
  k, v, counts = draws(rng, (B, S, N, K, E), (B, S, N, K, U), (B, S, K, N))
  for count in (jnp.abs(counts), (counts > 0).astype(jnp.float32)[:, :, :1]):

    def plain(k, v, count):
      counted = sigma(k) * jnp.swapaxes(count, 2, 3)[..., None]
      return jnp.einsum("BSNKE,BSNKU->BSKEU", counted, v), counted.sum(2), v

    def ours(k, v, count):
      k, v = arranged(k, order), arranged(v, order)
      written, keys, v = memory_kernels.write(k, v, count, order=order, on="cpu")
      return written, keys, back(v, order)

    weights = tuple(draws(rng, (B, S, K, E, U), (B, S, K, E), v.shape))
    compare(ours, plain, (k, v, count), weights, order)


@pytest.mark.parametrize("order", ORDERS)
def test_erase_is_what_delta_recalls(rng, small, order):
  k, count, z = draws(rng, (B, S, N, K, E), (B, S, K, N), (B, S, K, E))
  count, z = jnp.abs(count), jnp.abs(z).at[0, 1].set(0.0)  # one memory is empty

  def plain(k, count, z):
    keys = sigma(k)
    weight = jnp.einsum("BSNKE,BSKE->BSNK", keys, z)
    share = jnp.swapaxes(count, 2, 3) / jnp.where(weight > 0, weight, jnp.inf)
    return jnp.einsum("BSNKE,BSNKI->BSKEI", keys * share[..., None], keys)

  def ours(k, count, z):
    return memory_kernels.erase(arranged(k, order), count, z, order=order, on="cpu")

  compare(ours, plain, (k, count, z), *draws(rng, (B, S, K, E, E)), order)


# Fast tests have each order once.
@pytest.mark.parametrize(
  "order,local_order",
  [
    pytest.param(order, local, marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, order in enumerate(ORDERS)
    for j, local in enumerate(("BSNHE", "BKSGNE"))
  ],
)
def test_read_mixes_by_the_gate_of_each_segment(rng, small, order, local_order):
  shapes = (B, S, N, H, E), (B, S, N, H, U), (B, S, K, E, U), (B, S, K, E), (B, S, H)
  q, local, M, z, gate = draws(rng, *shapes)
  z, gate = jnp.abs(z).at[1, 0].set(0.0), jax.nn.sigmoid(gate)
  M = M.at[1, 0].set(0.0)

  def plain(q, local, M, z, gate):
    s = sigma(q).reshape(B, S, N, K, H // K, E)
    value = jnp.einsum("BSNKGE,BSKEU->BSNKGU", s, M)
    weight = jnp.einsum("BSNKGE,BSKE->BSNKG", s, z)[..., None]
    recalled = (value / jnp.where(weight > 0, weight, jnp.inf)).reshape(B, S, N, H, U)
    g = gate[:, :, None, :, None]
    return g * recalled + (1 - g) * local

  def ours(q, local, M, z, gate):
    out = memory_kernels.read(
      arranged(q, order), arranged(local, local_order), M, z, gate,
      order=order, local_order=local_order, on="cpu",
    )  # fmt: skip
    return back(out, order)

  compare(ours, plain, (q, local, M, z, gate), *draws(rng, (B, S, N, H, U)), order)


@pytest.mark.parametrize(
  "order,to",
  [
    pytest.param(order, to, marks=[pytest.mark.slow] * (i != j))
    for i, order in enumerate(ORDERS)
    for j, to in enumerate((*ORDERS[1:], "BKSGNE"))
  ],
)
def test_rotate_is_rotary_positions_in_another_order(rng, small, order, to):
  (x,) = draws(rng, (B, S, N, H, E))
  turns = array(rng.uniform(0, 1, E // 2), jnp.float32)
  place = jnp.arange(N, dtype=jnp.int32)

  def plain(x, turns):
    rope = Frequencies(turns, 1.3)
    return rotate(x.reshape(B * S, N, H, E), place[None], rope).reshape(x.shape), x

  def ours(x, turns):
    cos, sin = (jnp.tile(angle, 2) for angle in cos_sin(place, E, Frequencies(turns, 1.3)))
    options = {"order": order, "to": to, "on": "cpu", "G": H // K}
    rotated, x = memory_kernels.rotate(arranged(x, order), cos, sin, **options)
    return back(rotated, to), back(x, order)

  weights = tuple(draws(rng, x.shape, x.shape))
  compare(ours, plain, (x,), weights, f"{order} to {to}", given=(turns,))


def test_bfloat16_comes_and_goes_as_such(rng):
  k, v, q, local = (
    x.astype(jnp.bfloat16) for x in draws(rng, *[(B, S, N, K, E)] * 2, *[(B, S, N, H, E)] * 2)
  )
  count = jnp.ones((B, S, 1, N), jnp.float32)
  place = {"order": "BSNHE", "on": "cpu"}
  M, z, _ = memory_kernels.write(k, v, count, **place)
  out = memory_kernels.read(q, local, M, z, jnp.full((B, S, H), 0.5), local_order="BSNHE", **place)
  assert (M.dtype, z.dtype, out.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
  exact = memory_kernels.write(k.astype(jnp.float32), v.astype(jnp.float32), count, **place)
  close((M, z), exact[:2], "of bfloat16 keys and values the sums are float32")


@pytest.mark.parametrize(
  "E,rule",
  [
    pytest.param(128, Rule("linear"), marks=pytest.mark.slow, id="linear"),
    pytest.param(256, Rule("delta", decay=0.9), id="delta"),
  ],
)
def test_heads_first_around_splash_equals_plain_jax(rng, monkeypatch, E, rule):
  """As on a TPU: splash and all kernels, interpreted, with padding, resets and own projections."""
  B, T, N, H, K = 1, 512, 256, 2, 1
  q, k, v, d, own_q, own_k, own_v = draws(
    rng, *((B, T, heads, E) for heads in (H, K, K, H, H, K, K))
  )
  beta, M = draws(rng, (H,), (B, K, E, E))
  z = 10 * jnp.ones((B, K, E))
  mask, reset = jnp.arange(T)[None] < T - 100, array([[False, True]])
  write = array(rng.uniform(0, 1, (B, T, K)), jnp.float32)

  def graded(d, q, k, v, beta, M, z, write, own_q, own_k, own_v, *, form):
    def f(q, k, v, beta, M, z, write, *own):
      return infini.infini_attention(
        q, k, v, beta, MemoryState(M, z), segment_length=N, rule=rule, rope_theta=1e4,
        reset_BS=reset, mask_BT=mask, write_BTK=write, own=own, implementation=form,
      )  # fmt: skip

    out, back = jax.vjp(f, q, k, v, beta, M, z, write, own_q, own_k, own_v)
    return out, back((d, MemoryState(M, z)))

  arrays = d, q, k, v, beta, M, z, write, own_q, own_k, own_v
  plain = jax.jit(partial(graded, form="parallel"))(*arrays)
  compiled = pl.pallas_call
  monkeypatch.setattr(pl, "pallas_call", lambda *a, **o: compiled(*a, **o | {"interpret": True}))
  monkeypatch.setattr(kernels, "platform", lambda: "tpu")
  with jax.numpy_dtype_promotion("standard"):  # splash's code mixes types
    ours = jax.jit(partial(graded, form="auto"))(*arrays)
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(
  "on,shape,reason",
  [
    ("tpu", (2048, 128, 128), None),
    ("tpu", (2000, 128, 128), "segments of 2000"),
    ("tpu", (2048, 64, 64), "heads of 64 and 64"),
    ("tpu", (2048, 256, 256), None),
    ("tpu", (2048, 384, 384), "128 or 256"),
    ("gpu", (2048, 64, 64), None),
    ("gpu", (2048, 96, 96), "heads of 96"),
    ("gpu", (100, 64, 64), "segments of 100"),
    ("cpu", (7, 6, 4), None),
  ],
)
def test_the_kernels_say_why_they_cannot(on, shape, reason):
  got = memory_kernels.why_not(on, *shape)
  assert got is None if reason is None else reason in got


def test_the_config_knows_what_the_kernels_do_not_have():
  assert infini.NO_KERNELS == systems.NO_KERNELS, "a config is refused for other fields than here"


@pytest.mark.parametrize(
  "on,N,rows",
  [("tpu", 2048, 512), ("tpu", 2176, 128), ("tpu", 4224, 384), ("gpu", 48, 16)],
)
@pytest.mark.parametrize("E,U", [(128, 128), (256, 128), (128, 256)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_blocks_divide_a_segment(on, N, rows, E, U, dtype):
  """In whole vectors on a TPU, and in powers of two on a GPU; wide tokens are fewer."""
  k, v = (jnp.zeros((1, 1, N, 1, size), dtype) for size in (E, U))
  shape = blocks.Shape("BSNHE", k, on, v)
  assert N % shape.tokens == shape.tokens % shape.rows == 0
  assert shape.rows == rows and shape.tokens <= blocks.TOKENS
  assert shape.tokens * max(E, U) * k.dtype.itemsize <= blocks.BLOCK


def test_auto_takes_kernels_on_a_tpu_and_where_they_can(monkeypatch):
  q, v = jnp.zeros((1, 256, 2, 128)), jnp.zeros((1, 256, 1, 128))
  form = lambda N, rule: infini.choose_form("auto", q, v, N, rule)
  assert form(128, Rule()) == "parallel"
  monkeypatch.setattr(kernels, "platform", lambda: "tpu")
  assert form(128, Rule()) == "kernels"
  assert form(100, Rule()) == "parallel"
  assert form(128, Rule(readout_norm=True)) == "parallel"
