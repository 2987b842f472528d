"""Products in bfloat16, forward and backward, compared with float64; equal on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import MeshConfig
from infini_jax.ops.products import einsum
from infini_jax.parallel import make_mesh, product
from tests.tiny import array

SHAPES = {  # of x and y
  "BTD,DF->BTF": ((3, 5, 32), (32, 24)),
  "BTHE,HED->BTD": ((2, 4, 3, 8), (3, 8, 16)),
  "BTD,VD->BTV": ((2, 3, 16), (40, 16)),
}
ROUNDING = 2.0**-8  # of bfloat16


def drawn(rng, shape):
  return array(rng.standard_normal(shape), jnp.bfloat16)


@pytest.mark.parametrize("wide", [False, True], ids=["rounded", "wide"])
@pytest.mark.parametrize("equation", SHAPES)
def test_sums_are_rounded_once_forward_and_back(equation, wide, rng):
  x, y = (drawn(rng, shape) for shape in SHAPES[equation])
  options = {"preferred_element_type": jnp.float32} if wide else {}
  out, back = jax.vjp(lambda x, y: einsum(equation, x, y, **options), x, y)
  assert out.dtype == (jnp.float32 if wide else jnp.bfloat16)
  exact = lambda equation, *of: np.einsum(equation, *(np.asarray(z, np.float64) for z in of))
  scale = lambda equation, *of: np.einsum(equation, *(np.abs(np.asarray(z, float)) for z in of))
  (of_x, of_y), of_out = equation.split("->")[0].split(","), equation.split("->")[1]
  cotangent = drawn(rng, out.shape)
  found = out, *back(cotangent.astype(out.dtype))
  wanted = (
    (equation, x, y),
    (f"{of_out},{of_y}->{of_x}", cotangent, y),
    (f"{of_x},{of_out}->{of_y}", x, cotangent),
  )
  for have, (what, *of) in zip(found, wanted, strict=True):
    off = np.abs(np.asarray(have, np.float64) - exact(what, *of))
    limit = (1e-6 if have.dtype == jnp.float32 else ROUNDING) * scale(what, *of)
    assert (off <= limit).all(), f"{what}: off by {(off / scale(what, *of)).max():.2e}"


def test_other_types_and_options_are_those_of_einsum(rng):
  x, y = (array(rng.standard_normal(s), jnp.float32) for s in ((3, 4), (4, 5)))
  assert np.array_equal(einsum("BD,DF->BF", x, y), jnp.einsum("BD,DF->BF", x, y))
  low = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  highest = {"precision": "highest"}
  want = jnp.einsum("BD,DF->BF", *low, **highest)
  assert np.array_equal(einsum("BD,DF->BF", *low, **highest), want)


def test_eight_devices_have_the_gradients_of_one(rng):
  """Gradients are summed over devices in another order, so they differ by a few roundings."""
  x, w = drawn(rng, (8, 6, 16)), array(rng.standard_normal((16, 32)), jnp.float32)

  def loss(x, w):
    return (product("BTD,DF->BTF", x, w).astype(jnp.float32) ** 2).mean()

  want = jax.value_and_grad(loss, (0, 1))(x, w)
  for sizes in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "seq": 2}):
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))
    with jax.set_mesh(mesh):
      found = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w)
    for have, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
      have, wanted = np.asarray(have, np.float64), np.asarray(wanted, np.float64)
      assert np.abs(have - wanted).max() <= 4 * ROUNDING * np.abs(wanted).max(), sizes
