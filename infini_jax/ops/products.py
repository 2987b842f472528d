"""Products of two arrays, in the form that is fast on every platform."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def einsum(equation: str, x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
  """`jnp.einsum` of two arrays of one type.

  Of bfloat16 on a CPU, sums are float32 and rounded after: XLA has a fast program for that alone.
  What goes back is rounded to bfloat16 before its products, as a TPU does.
  """
  dtype = options.get("preferred_element_type", x.dtype)
  if x.dtype != jnp.bfloat16 or options.keys() - {"preferred_element_type"}:
    return jnp.einsum(equation, x, y, **options)
  varying = [jax.typeof(z).manual_axis_type.varying for z in (x, y)]
  x, y = (
    jax.lax.pcast(z, tuple(set().union(*varying) - own), to="varying")
    for z, own in zip((x, y), varying, strict=True)
  )
  wide = functools.partial(_wide, equation, jnp.dtype(dtype))
  plain = functools.partial(jnp.einsum, equation, **options)
  return jax.lax.platform_dependent(x, y, cpu=wide, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _wide(equation, dtype, x, y):
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32).astype(dtype)


def _forward(equation, dtype, x, y):
  return _wide(equation, dtype, x, y), (x, y)


def _backward(equation, dtype, saved, out):
  x, y = saved
  (of_x, of_y), of_out = equation.split("->")[0].split(","), equation.split("->")[1]
  out = out.astype(x.dtype)
  return (
    _wide(f"{of_out},{of_y}->{of_x}", x.dtype, out, y),
    _wide(f"{of_x},{of_out}->{of_y}", y.dtype, x, out),
  )


_wide.defvjp(_forward, _backward)
