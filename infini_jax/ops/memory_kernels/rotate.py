"""Rotary positions, and another order of the axes."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from infini_jax.ops.memory_kernels.blocks import Shape, dot, each


def rotate(
  x: Float[Array, "..."],
  cos_NE: Float[Array, "N E"],
  sin_NE: Float[Array, "N E"],
  *,
  order: str,
  to: str,
  on: str,
  G: int = 1,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """Rotary positions that restart in each segment, and another order of the axes, in one pass.

  Args:
    x: queries or keys, in `order`.
    cos_NE, sin_NE: of the angle of each position and pair, the same in both halves, times any
      scale; they get no gradient.
    order, to: letters of what comes in and goes out.
    on: the platform.
    G: query heads of a key/value head, where the letters have it.

  Returns:
    The rotated array, in `to`, and `x`. An operation that uses `x` next should take this one: the
    kernel that computes the second gradient then adds the first.
  """
  return _rotate_sharing(x, cos_NE, sin_NE, order, to, on, G)


def rotate_only(x, cos_NE, sin_NE, *, order: str, to: str, on: str, G: int = 1):
  """`rotate` when no other operation uses `x`: the rotated array alone."""
  return _rotate(x, cos_NE, sin_NE, order, to, on, G)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _rotate_sharing(x, cos, sin, order, to, on, G):
  return _rotate(x, cos, sin, order, to, on, G), x


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _rotate(x, cos, sin, order, to, on, G):
  shape, E, [*specs, spec] = _rotate_specs(order, to, on, G, x)
  out = spec, shape.array(E, x.dtype, to)
  [rotated] = shape.call(_rotate_kernel, "infini_rotate", specs, [out], x, cos, sin)
  return rotated


def _rotate_specs(order, to, on, G, x):
  shape, E = Shape(order, x, on, G=G), x.shape[-1]
  angles = pl.BlockSpec((shape.tokens, E), lambda b, s, h, n: (n, 0))
  return shape, E, [shape.token(E), angles, angles, shape.token(E, to)]


def _rotated(x, cos, sin, half_EZ, tile):
  """Rows of tokens, rotated: (first, second) times cos, and (-second, first) times sin."""
  value = x.astype(jnp.float32)
  return value * cos + dot(value, half_EZ, (1, 0), tile) * sin


def _half(E: int) -> Array:
  """The matrix that makes (-second, first) of (first, second)."""
  row, column = (jax.lax.broadcasted_iota(jnp.int32, (E, E), d) for d in (0, 1))
  return jnp.where(jnp.abs(row - column) == E // 2, jnp.where(row < column, 1.0, -1.0), 0.0)


def _rotate_kernel(ins, outs, tile):
  (x, cos, sin), [out] = ins, outs
  half_EZ = _half(x.shape[-1])

  def step(at, sums):
    out[at, :] = _rotated(x[at, :], cos[at, :], sin[at, :], half_EZ, tile).astype(out.dtype)
    return sums

  each(x, tile, step, 0)


def _rotate_forward(x, cos, sin, order, to, on, G):
  return _rotate(x, cos, sin, order, to, on, G), (cos, sin)


def _rotate_backward(order, to, on, G, saved, d_rotated):
  cos, sin = saved
  dx = _rotate(d_rotated, cos, -sin, to, order, on, G)
  return dx, jnp.zeros_like(cos), jnp.zeros_like(sin)


_rotate.defvjp(_rotate_forward, _rotate_backward)


def _sharing_forward(x, cos, sin, order, to, on, G):
  return _rotate_sharing(x, cos, sin, order, to, on, G), (x, cos, sin)


def _sharing_backward(order, to, on, G, saved, gradients):
  (x, cos, sin), (d_rotated, d_x) = saved, gradients
  shape, E, [own, *angles, rotated] = _rotate_specs(order, to, on, G, x)
  out = own, shape.array(E, x.dtype)
  specs = [rotated, own, *angles]
  [dx] = shape.call(
    _sharing_backward_kernel, "infini_rotate_backward", specs, [out], d_rotated, d_x, cos, sin
  )
  return dx, jnp.zeros_like(cos), jnp.zeros_like(sin)


def _sharing_backward_kernel(ins, outs, tile):
  (d_rotated, d_x, cos, sin), [out] = ins, outs
  half_EZ = _half(out.shape[-1])

  def step(at, sums):
    back = _rotated(d_rotated[at, :], cos[at, :], -sin[at, :], half_EZ, tile)
    out[at, :] = (back + d_x[at, :].astype(jnp.float32)).astype(out.dtype)
    return sums

  each(out, tile, step, 0)


_rotate_sharing.defvjp(_sharing_forward, _sharing_backward)
