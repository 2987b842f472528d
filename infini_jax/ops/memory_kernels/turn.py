"""Rotary positions, and another order of the axes."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from infini_jax.ops.memory_kernels.blocks import Shape, dot, each


def turn(
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
    The turned array, in `to`, and `x`. Who needs `x` next takes this one: both gradients are then
    summed by the kernel that computes the second.
  """
  return _turn_sharing(x, cos_NE, sin_NE, order, to, on, G)


def turn_only(x, cos_NE, sin_NE, *, order: str, to: str, on: str, G: int = 1):
  """`turn`, where nobody else needs `x`: the turned array alone."""
  return _turn(x, cos_NE, sin_NE, order, to, on, G)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _turn_sharing(x, cos, sin, order, to, on, G):
  return _turn(x, cos, sin, order, to, on, G), x


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _turn(x, cos, sin, order, to, on, G):
  shape, E, [*specs, spec] = _turn_specs(order, to, on, G, x)
  out = spec, shape.array(E, x.dtype, to)
  [turned] = shape.call(_turn_kernel, "infini_turn", specs, [out], x, cos, sin)
  return turned


def _turn_specs(order, to, on, G, x):
  shape, E = Shape(order, x, on, G=G), x.shape[-1]
  angles = pl.BlockSpec((shape.tokens, E), lambda b, s, h, n: (n, 0))
  return shape, E, [shape.token(E), angles, angles, shape.token(E, to)]


def _turned(x, cos, sin, half_EE, tile):
  """Rows of tokens, turned: (first, second) times cos, and (-second, first) times sin."""
  value = x.astype(jnp.float32)
  return value * cos + dot(value, half_EE, (1, 0), tile) * sin


def _half(E: int) -> Array:
  """The matrix that makes (-second, first) of (first, second)."""
  row, column = (jax.lax.broadcasted_iota(jnp.int32, (E, E), d) for d in (0, 1))
  return jnp.where(jnp.abs(row - column) == E // 2, jnp.where(row < column, 1.0, -1.0), 0.0)


def _turn_kernel(ins, outs, tile):
  (x, cos, sin), [out] = ins, outs
  half_EE = _half(x.shape[-1])

  def step(at, sums):
    out[at, :] = _turned(x[at, :], cos[at, :], sin[at, :], half_EE, tile).astype(out.dtype)
    return sums

  each(x, tile, step, 0)


def _turn_forward(x, cos, sin, order, to, on, G):
  return _turn(x, cos, sin, order, to, on, G), (cos, sin)


def _turn_backward(order, to, on, G, saved, d_turned):
  cos, sin = saved
  dx = _turn(d_turned, cos, -sin, to, order, on, G)
  return dx, jnp.zeros_like(cos), jnp.zeros_like(sin)


_turn.defvjp(_turn_forward, _turn_backward)


def _sharing_forward(x, cos, sin, order, to, on, G):
  return _turn_sharing(x, cos, sin, order, to, on, G), (x, cos, sin)


def _sharing_backward(order, to, on, G, saved, gradients):
  (x, cos, sin), (d_turned, d_x) = saved, gradients
  shape, E, [own, *angles, turned] = _turn_specs(order, to, on, G, x)
  out = own, shape.array(E, x.dtype)
  specs = [turned, own, *angles]
  [dx] = shape.call(
    _sharing_backward_kernel, "infini_turn_backward", specs, [out], d_turned, d_x, cos, sin
  )
  return dx, jnp.zeros_like(cos), jnp.zeros_like(sin)


def _sharing_backward_kernel(ins, outs, tile):
  (d_turned, d_x, cos, sin), [out] = ins, outs
  half_EE = _half(out.shape[-1])

  def step(at, sums):
    back = _turned(d_turned[at, :], cos[at, :], -sin[at, :], half_EE, tile)
    out[at, :] = (back + d_x[at, :].astype(jnp.float32)).astype(out.dtype)
    return sums

  each(out, tile, step, 0)


_turn_sharing.defvjp(_sharing_forward, _sharing_backward)
