"""Rotary positions (Su et al., arXiv 2104.09864), in the half-rotation layout of Llama."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
  x_BTHE: Float[Array, "B T H E"], position_BT: Int[Array, "#B T"], theta: float
) -> Float[Array, "B T H E"]:
  """Turns each head's pairs `(x[i], x[i + E/2])` by `position * theta^(-2i/E)`.

  Args:
    x_BTHE: queries or keys; E is even.
    position_BT: the position of each token; one row may serve all lanes.
    theta: the base of the wavelengths.

  Returns:
    The rotated array, in the type of `x_BTHE`; the angles are computed in float32.
  """
  half = x_BTHE.shape[-1] // 2
  frequency_E = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTHE = position_BT.astype(jnp.float32)[:, :, None, None] * frequency_E[None, None, None]
  sin, cos = jnp.sin(angle_BTHE), jnp.cos(angle_BTHE)
  first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BTHE.dtype)
