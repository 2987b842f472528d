"""The update of the memory by a segment, and the matrix of the delta rule."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infini_jax.ops.memory import sigma
from infini_jax.ops.memory_kernels.blocks import (
  Shape,
  column,
  dot,
  each,
  inverse_of,
  slope,
  zeros,
)


def write(
  k: Float[Array, "..."],
  v: Float[Array, "..."],
  count_BSKN: Float[Array, "B S #K N"],
  *,
  order: str,
  on: str,
) -> tuple[Float[Array, "B S K E U"], Float[Array, "B S K E"], Float[Array, "..."]]:
  """The update by each segment, `sum_t c_t sigma(k_t)^T v_t` and `sum_t c_t sigma(k_t)`.

  The values are returned too. Who needs them next takes these: both gradients are then summed by
  the kernel that computes the second.

  Args:
    k, v: un-rotated keys, and values, in `order`.
    count_BSKN: how much each token counts, float32; one row for all heads, or one for each.
    order: letters of the token arrays, with H for K.
    on: the platform.
  """
  written, keys, v = _write(k, v, count_BSKN[..., None, :], order, on)
  return written, keys[..., 0, :], v


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _write(k, v, count, order, on):
  return _write_forward(k, v, count, order, on)[0]


def _write_specs(k, v, count, order, on):
  shape, E, U = Shape(order, k, on, v), k.shape[-1], v.shape[-1]
  return shape, E, U, [shape.token(E), shape.token(U), shape.count(count.shape[2])]


def _write_forward(k, v, count, order, on):
  shape, E, U, specs = _write_specs(k, v, count, order, on)
  outs = [shape.sums(E, U), shape.sums(1, E)]
  written, keys = shape.call(_write_kernel, "infini_write", specs, outs, k, v, count)
  return (written.sum(3), keys.sum(3), v), (k, v, count)


def _write_kernel(ins, outs, tile):
  (k, v, count), (written, keys) = ins, outs

  def step(at, sums):
    s = sigma(k[at, :]) * column(count, at)
    product = dot(s, v[at, :].astype(jnp.float32), (0, 0), tile)
    return sums[0] + product, sums[1] + jnp.sum(s, 0, keepdims=True)

  E, U = written.shape
  written[...], keys[...] = each(k, tile, step, (zeros(E, U), zeros(1, E)))


def _write_backward(order, on, saved, gradients):
  k, v, count = saved
  shape, E, U, specs = _write_specs(k, v, count, order, on)
  specs = [*specs, shape.state(E, U), shape.state(1, E), shape.token(U)]
  outs = [
    (shape.token(E), shape.array(E, k.dtype)),
    (shape.token(U), shape.array(U, v.dtype)),
    shape.count_gradient(),
  ]
  dk, dv, dc = shape.call(
    _write_backward_kernel, "infini_write_backward", specs, outs, k, v, count, *gradients
  )
  return dk, dv, dc if count.shape[2] == shape.H else dc.sum(2, keepdims=True)


def _write_backward_kernel(ins, outs, tile):
  (k, v, count, dM, dz, more), (dk, dv, dc) = ins, outs
  dM_EU, dz_E = dM[...], dz[...]

  def step(at, sums):
    s, c = sigma(k[at, :]), column(count, at)
    ds = dot(v[at, :].astype(jnp.float32), dM_EU, (1, 1), tile) + dz_E
    dk[at, :] = (ds * c * slope(k[at, :])).astype(dk.dtype)
    dv_U = dot(s * c, dM_EU, (1, 0), tile) + more[at, :].astype(jnp.float32)
    dv[at, :] = dv_U.astype(dv.dtype)
    dc[:, at] = jnp.sum(ds * s, 1, keepdims=True).reshape(1, -1)
    return sums

  each(k, tile, step, 0)


_write.defvjp(_write_forward, _write_backward)


def erase(
  k: Float[Array, "..."],
  count_BSKN: Float[Array, "B S #K N"],
  z_BSKE: Float[Array, "B S K E"],
  *,
  order: str,
  on: str,
) -> Float[Array, "B S K E Z"]:
  """The matrix of each segment that delta applies to the memory and subtracts, equation (9).

      erase = sum_t c_t sigma(k_t)^T sigma(k_t) / (sigma(k_t) z)

  Args:
    k: un-rotated keys, in `order`.
    count_BSKN: how much each token counts, float32.
    z_BSKE: of the memory before each segment, float32. Where it is empty, the matrix is 0.
    order: letters of the token arrays, with H for K.
    on: the platform.
  """
  return _erase(k, count_BSKN[..., None, :], z_BSKE[..., None, :], order, on)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _erase(k, count, z, order, on):
  return _erase_forward(k, count, z, order, on)[0]


def _erase_specs(k, count, order, on):
  shape, E = Shape(order, k, on), k.shape[-1]
  return shape, E, [shape.token(E), shape.count(count.shape[2]), shape.state(1, E)]


def _erase_forward(k, count, z, order, on):
  shape, E, specs = _erase_specs(k, count, order, on)
  [erase] = shape.call(_erase_kernel, "infini_erase", specs, [shape.sums(E, E)], k, count, z)
  return erase.sum(3), (k, count, z)


def _erase_kernel(ins, outs, tile):
  (k, count, z), [erase] = ins, outs
  z_E = z[...]

  def step(at, sum_EZ):
    s = sigma(k[at, :])
    inverse = inverse_of(jnp.sum(s * z_E, 1, keepdims=True))
    return sum_EZ + dot(s * column(count, at), s * inverse, (0, 0), tile)

  E = k.shape[-1]
  erase[...] = each(k, tile, step, zeros(E, E))


def _erase_backward(order, on, saved, d_erase):
  k, count, z = saved
  shape, E, specs = _erase_specs(k, count, order, on)
  outs = [
    (shape.token(E), shape.array(E, k.dtype)),
    shape.count_gradient(),
    shape.sums(1, E),
  ]
  both = d_erase + jnp.swapaxes(d_erase, -1, -2)
  dk, dc, dz = shape.call(
    _erase_backward_kernel,
    "infini_erase_backward",
    [*specs, shape.state(E, E)],
    outs,
    k,
    count,
    z,
    both,
  )
  return dk, dc if count.shape[2] == shape.H else dc.sum(2, keepdims=True), dz.sum(3)


def _erase_backward_kernel(ins, outs, tile):
  (k, count, z, both), (dk, dc, dz) = ins, outs
  z_E, both_EZ = z[...], both[...]

  def step(at, sum_E):
    s, c = sigma(k[at, :]), column(count, at)
    inverse = inverse_of(jnp.sum(s * z_E, 1, keepdims=True))
    turned = dot(s, both_EZ, (1, 0), tile)
    value = 0.5 * jnp.sum(s * turned, 1, keepdims=True) * inverse  # s d_erase s / (s z)
    d_weight = -value * inverse * c
    dk[at, :] = ((inverse * c * turned + d_weight * z_E) * slope(k[at, :])).astype(dk.dtype)
    dc[:, at] = value.reshape(1, -1)
    return sum_E + jnp.sum(s * d_weight, 0, keepdims=True)

  E = k.shape[-1]
  dz[...] = each(k, tile, step, zeros(1, E))


_erase.defvjp(_erase_forward, _erase_backward)
