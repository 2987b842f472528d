"""From logits to a token: greedy, temperature, top-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infini_jax.config import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are chosen. Temperature 0 is greedy."""

  temperature: float = 0.8
  top_p: float = 0.95

  def __post_init__(self):
    if self.temperature < 0:
      raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or more")
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p={self.top_p}: must be above 0 and at most 1")


def sample(logits_BV: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
  """One token per lane.

  With `top_p` below 1 only the most likely tokens whose probabilities reach it are drawn from
  (Holtzman et al., arXiv 1904.09751); the one that crosses the line is among them.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
  if sampling.top_p < 1:
    ordered_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    share_BV = jax.nn.softmax(ordered_BV, axis=-1)
    above_BV = jnp.cumsum(share_BV, axis=-1) - share_BV  # what stands before each of them
    kept_BV = jnp.where(above_BV < sampling.top_p, ordered_BV, jnp.inf)
    logits_BV = jnp.where(logits_BV >= kept_BV.min(-1, keepdims=True), logits_BV, -jnp.inf)
  return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)
