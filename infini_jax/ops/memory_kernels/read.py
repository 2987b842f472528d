"""The memory read, and mixed with local attention."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infini_jax.ops.memory import sigma
from infini_jax.ops.memory_kernels.blocks import (
  MULTIPLE,
  Shape,
  dot,
  each,
  inverse_of,
  slope,
  zeros,
)


def read(
  q: Float[Array, "..."],
  local: Float[Array, "..."],
  M_BSKEU: Float[Array, "B S K E U"],
  z_BSKE: Float[Array, "B S K E"],
  gate_BSH: Float[Array, "B S H"],
  *,
  order: str,
  local_order: str,
  on: str,
) -> Float[Array, "..."]:
  """Equations (7) and (10): `g recalled + (1 - g) local`; an empty memory recalls 0.

  Args:
    q: un-rotated queries, in `order`.
    local: the output of local attention, in `local_order`.
    M_BSKEU, z_BSKE: the memory that each segment reads, float32.
    gate_BSH: the share of the memory in each segment and head; 0: all local.
    order, local_order: letters of the arrays, such as "BHSNE".
    on: the platform.

  Returns:
    The mixture, in `order` and the type of `local`.
  """
  return _read(q, local, M_BSKEU, z_BSKE[..., None, :], gate_BSH, order, local_order, on)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _read(q, local, M, z, gate, order, local_order, on):
  return _read_forward(q, local, M, z, gate, order, local_order, on)[0]


def _read_specs(q, local, M, z, gate, order, local_order, on):
  E, U = M.shape[-2:]
  shape = Shape(order, q, on, local)
  group = shape.G = shape.H // M.shape[2]
  specs = [
    shape.state(1, MULTIPLE),
    shape.token(E),
    shape.token(U, local_order),
    shape.state(E, U, group),
    shape.state(1, E, group),
  ]
  spread = jnp.broadcast_to(gate.astype(jnp.float32)[..., None, None], (*gate.shape, 1, MULTIPLE))
  return shape, E, U, specs, (spread, q, local, M, z)


def _read_forward(q, local, M, z, gate, order, local_order, on):
  shape, _, U, specs, args = _read_specs(q, local, M, z, gate, order, local_order, on)
  out = shape.token(U), shape.array(U, local.dtype)
  [mixed] = shape.call(_read_kernel, "infini_read", specs, [out], *args)
  return mixed, (q, local, M, z, gate)


def _recall(q, M, z, tile):
  """sigma(q), the inverse of its weight, and the read-out."""
  s = sigma(q)
  inverse = inverse_of(jnp.sum(s * z, 1, keepdims=True))
  return s, inverse, dot(s, M, (1, 0), tile) * inverse


def _read_kernel(ins, outs, tile):
  (gate, q, local, M, z), [out] = ins, outs
  g = gate[0, 0]
  M_EU, z_E = M[...], z[...]

  def step(at, sums):
    _, _, recalled = _recall(q[at, :], M_EU, z_E, tile)
    mixed = g * recalled + (1 - g) * local[at, :].astype(jnp.float32)
    out[at, :] = mixed.astype(out.dtype)
    return sums

  each(q, tile, step, 0)


def _read_backward(order, local_order, on, saved, d_out):
  q, local, M, z, gate = saved
  shape, E, U, specs, args = _read_specs(q, local, M, z, gate, order, local_order, on)
  outs = [
    (shape.token(E), shape.array(E, q.dtype)),
    (shape.token(U, local_order), shape.array(U, local.dtype, local_order)),
    shape.sums(E, U),
    shape.sums(1, E),
    shape.sums(1, U),
  ]
  specs = [*specs, shape.token(U)]
  dq, d_local, dM, dz, dg = shape.call(
    _read_backward_kernel, "infini_read_backward", specs, outs, *args, d_out
  )
  grouped = lambda x: x.sum(3).reshape(*M.shape[:3], -1, *x.shape[-2:]).sum(3)
  return dq, d_local, grouped(dM), grouped(dz), dg.sum((3, 4, 5)).astype(gate.dtype)


def _read_backward_kernel(ins, outs, tile):
  gate, q, local, M, z, d_out = ins
  dq, d_local, dM, dz, dg = outs
  g = gate[0, 0]
  M_EU, z_E = M[...], z[...]

  def step(at, sums):
    s, inverse, recalled = _recall(q[at, :], M_EU, z_E, tile)
    d = d_out[at, :].astype(jnp.float32)
    d_local[at, :] = ((1 - g) * d).astype(d_local.dtype)
    d_gate = jnp.sum(d * (recalled - local[at, :].astype(jnp.float32)), 0, keepdims=True)
    d_value = g * d * inverse
    d_weight = -jnp.sum(d_value * recalled, 1, keepdims=True)
    ds = dot(d_value, M_EU, (1, 1), tile) + d_weight * z_E
    dq[at, :] = (ds * slope(q[at, :])).astype(dq.dtype)
    new = dot(s, d_value, (0, 0), tile), jnp.sum(s * d_weight, 0, keepdims=True), d_gate
    return tuple(a + b for a, b in zip(sums, new, strict=True))

  (E, U) = M.shape
  dM[...], dz[...], dg[...] = each(q, tile, step, (zeros(E, U), zeros(1, E), zeros(1, U)))


_read.defvjp(_read_forward, _read_backward)
