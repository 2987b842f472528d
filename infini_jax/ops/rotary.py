"""Rotary positions (Su et al., arXiv 2104.09864), in the half-rotation layout of Llama."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rope = float | Array  # the base of the wavelengths, or each pair's frequency, of `frequencies`


def rotate(
  x_BTHE: Float[Array, "B T H E"], position_BT: Int[Array, "#B T"], rope: Rope
) -> Float[Array, "B T H E"]:
  """Turns each head's pairs `(x[i], x[i + E/2])` by `position * frequency[i]`.

  Args:
    x_BTHE: queries or keys; E is even.
    position_BT: the position of each token; one row may serve all lanes.
    rope: the base theta of frequencies `theta^(-2i/E)`, or the E/2 frequencies.

  Returns:
    The rotated array, in the type of `x_BTHE`; the angles are computed in float32.
  """
  frequency_E = frequencies(x_BTHE.shape[-1], rope) if isinstance(rope, float) else rope
  angle_BTHE = position_BT.astype(jnp.float32)[:, :, None, None] * frequency_E[None, None, None]
  sin, cos = jnp.sin(angle_BTHE), jnp.cos(angle_BTHE)
  first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BTHE.dtype)


def frequencies(E: int, theta: float, scaling: tuple[float, ...] = ()) -> Float[Array, " {E}//2"]:
  """The angle from one position to the next, of each pair of a head.

  Args:
    E: the head's size.
    theta: the base: `theta^(-2i/E)` without scaling.
    scaling: () for none. (factor,) divides all of them, as if positions stood closer (Chen et al.,
      arXiv 2306.15595). (factor, low, high, original) is Llama 3.1's (Grattafiori et al.,
      arXiv 2407.21783, and Meta's code): a pair that turns `high` times or more in `original`
      positions stays as it is, one that turns at most `low` times is divided, between them there is
      a line.
  """
  half = E // 2
  frequency_E = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if not scaling:
    return frequency_E
  if len(scaling) == 1:
    return frequency_E / scaling[0]
  factor, low, high, original = scaling
  turns_E = original * frequency_E / (2 * math.pi)
  kept_E = jnp.clip((turns_E - low) / (high - low), 0, 1)
  return frequency_E * (kept_E + (1 - kept_E) / factor)
