"""Rotary positions (Su et al., arXiv 2104.09864), in the half-rotation layout of Llama."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Frequencies(NamedTuple):
  """How queries and keys are rotated, if the base is not enough."""

  frequency_E: Float[Array, " E//2"]  # the angle from one position to the next, of each pair
  magnitude: float | Float[Array, ""] = 1.0  # what a rotated pair is multiplied by


Rope = float | Frequencies  # the base of the wavelengths, or what `frequencies` made of it


def rotate(
  x_BTHE: Float[Array, "B T H E"], position_BT: Int[Array, "#B T"], rope: Rope
) -> Float[Array, "B T H E"]:
  """Rotates each head's pairs `(x[i], x[i + E/2])` by `position * frequency[i]`.

  Args:
    x_BTHE: queries or keys; E is even.
    position_BT: the position of each token; one row may serve all lanes.
    rope: the base theta of frequencies `theta^(-2i/E)`, or what `frequencies` returns.

  Returns:
    The rotated array, in the type of `x_BTHE`; the angles are computed in float32.
  """
  cos, sin = cos_sin(position_BT[..., None], x_BTHE.shape[-1], rope)
  first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BTHE.dtype)


def rotation(first_B: Array | None, rope: Rope | None) -> Callable[[Array], Array]:
  """Rotates tokens (B,T,heads,E). The first of each lane has the position `first_B`, or 0.

  Args:
    first_B: int32.
    rope: as of `rotate`; None leaves the tokens as they are.
  """
  if rope is None:
    return lambda x: x

  def rotated(x_BTHE):
    position_BT = jnp.arange(x_BTHE.shape[1], dtype=jnp.int32)[None]
    position_BT = position_BT if first_B is None else first_B[:, None] + position_BT
    return rotate(x_BTHE, position_BT, rope)

  return rotated


def computed(rope: Rope | None) -> Frequencies | None:
  """Frequencies that are computed go to every device as an array; theta is a constant."""
  return rope if isinstance(rope, Frequencies) else None


def cos_sin(
  position: Int[Array, "*T"], E: int, rope: Rope
) -> tuple[Float[Array, "*T half"], Float[Array, "*T half"]]:
  """Cosine and sine of the angle of each pair of a head of size E, float32, times `magnitude`."""
  rope = frequencies(E, rope) if isinstance(rope, float) else rope
  frequency_E, magnitude = rope
  angle = position.astype(jnp.float32)[..., None] * frequency_E[(None,) * position.ndim]
  return magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)


def frequencies(E: int, theta: float, scaling: tuple[float, ...] = ()) -> Frequencies:
  """The frequencies of a head's pairs, scaled for texts longer than those of the pretraining.

  Args:
    E: the head's size.
    theta: the base: `theta^(-2i/E)` without scaling.
    scaling: () for none. (factor,) divides all of them, as if positions were closer (Chen et al.,
      arXiv 2306.15595). (factor, low, high, original) is Llama 3.1's (Grattafiori et al.,
      arXiv 2407.21783, and Meta's code). A pair that rotates `high` times or more in `original`
      positions stays as it is. One that rotates at most `low` times is divided. Between them the
      division is linear. (factor, low, high, original, magnitude) is YaRN's (Peng et al.,
      arXiv 2309.00071). There the division is linear in the number of the pair, between two whole
      numbers, and both queries and keys are multiplied by `magnitude`.
  """
  half = E // 2
  frequency_E = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if not scaling:
    return Frequencies(frequency_E)
  if len(scaling) == 1:
    return Frequencies(frequency_E / scaling[0])
  factor, low, high, original = scaling[:4]
  if len(scaling) == 4:
    turns_E = original * frequency_E / (2 * math.pi)
    kept_E = jnp.clip((turns_E - low) / (high - low), 0, 1)
    return Frequencies(frequency_E * (kept_E + (1 - kept_E) / factor))
  pair = lambda turns: half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)
  first, last = max(math.floor(pair(high)), 0), min(math.ceil(pair(low)), E - 1)
  divided_E = jnp.clip((jnp.arange(half) - first) / ((last - first) or 1e-3), 0, 1)
  return Frequencies(frequency_E * (1 - divided_E + divided_E / factor), scaling[4])
