"""From logits to a token: greedy, temperature, top-k, top-p, repetition penalty."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infini_jax.config import LEAST, MOST, InputError
from infini_jax.inference.arguments import number, whole

RECENT = 256  # the number of last tokens, read or generated, for the repetition penalty
NOTHING = -1  # stands for missing tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are chosen. Temperature 0 is greedy; then `top_p` and `top_k` have no effect."""

  temperature: float = 0.8
  top_p: float = 0.95
  top_k: int = 0  # draw from this many likeliest tokens; 0: all
  repetition_penalty: float = 1.0  # above 1, tokens among the last 256 are less likely; 1: off

  def __post_init__(self):
    for name in ("temperature", "top_p", "repetition_penalty"):
      object.__setattr__(self, name, number(name, getattr(self, name)))
    object.__setattr__(self, "top_k", whole("top_k", self.top_k, low="0 (off) or more"))
    if self.temperature != 0 and not LEAST <= self.temperature <= MOST:
      raise InputError(
        f"temperature={self.temperature}: must be 0 (greedy) or more, from {LEAST:g} to {MOST:g}"
      )
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p={self.top_p}: must be above 0 and at most 1")
    if not LEAST <= self.repetition_penalty <= MOST:
      raise InputError(
        f"repetition_penalty={self.repetition_penalty}: must be above 0, from {LEAST:g} to "
        f"{MOST:g}; 1 is off, 1.1 is usual"
      )


class Settings(NamedTuple):
  """The fields of `Sampling` of each lane, (B,)."""

  temperature_B: Array
  top_p_B: Array
  top_k_B: Array
  repetition_penalty_B: Array


def sample(
  logits_BV: Float[Array, "B V"],
  keys_B: Array,
  sampling: Sampling,
  recent_BQ: Int[Array, "B Q"] | None = None,
) -> Int[Array, " B"]:
  """One token for each lane, drawn with the key of the lane.

  First, the repetition penalty: logits of tokens in `recent_BQ` are divided by it if they are above
  0, and multiplied if they are below (Keskar et al., arXiv 1909.05858). Then the logits are divided
  by the temperature, and the `top_k` likeliest tokens are kept. Of these, the likeliest tokens are
  kept until the sum of their probabilities reaches `top_p` (Holtzman et al., arXiv 1904.09751); the
  token that reaches it is kept too.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  if sampling.repetition_penalty != 1 and recent_BQ is not None:
    logits_BV = jax.vmap(_penalize, (0, 0, None))(logits_BV, recent_BQ, sampling.repetition_penalty)
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / sampling.temperature
  V = logits_BV.shape[1]
  k = min(sampling.top_k or V, V)
  if sampling.top_p < 1 or k < V:
    ordered_BV = jax.lax.top_k(logits_BV, k)[0]
    share_BV = jax.nn.softmax(ordered_BV, axis=-1)
    above_BV = jnp.cumsum(share_BV, axis=-1) - share_BV  # the sum of all likelier tokens
    kept_BV = jnp.where(above_BV < max(sampling.top_p, LEAST), ordered_BV, jnp.inf)
    logits_BV = jnp.where(logits_BV >= kept_BV.min(-1, keepdims=True), logits_BV, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def sample_lanes(
  logits_BV: Float[Array, "B V"],
  keys_B: Array,
  how: Settings,
  recent_BQ: Int[Array, "B Q"],
) -> Int[Array, " B"]:
  """As `sample`, with settings of each lane that are arrays: one program for all of them."""
  temperature_B, top_p_B, top_k_B, penalty_B = how
  V = logits_BV.shape[1]
  penalized = lambda x_BV: jax.vmap(_penalize)(x_BV, recent_BQ, penalty_B)
  same = lambda x_BV: x_BV
  logits_BV = jax.lax.cond((penalty_B != 1).any(), penalized, same, logits_BV.astype(jnp.float32))
  greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  k_B = jnp.where((top_k_B == 0) | (top_k_B > V), V, top_k_B)
  cuts_B = (top_p_B < 1) | (k_B < V)

  def cut(x_BV):
    ordered_BV = jax.lax.top_k(x_BV, V)[0]
    first_BV = jnp.arange(V, dtype=jnp.int32)[None] < k_B[:, None]
    share_BV = jax.nn.softmax(jnp.where(first_BV, ordered_BV, -jnp.inf), axis=-1)
    above_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    kept_BV = first_BV & (above_BV < jnp.maximum(top_p_B, LEAST)[:, None])
    least_B1 = jnp.where(kept_BV, ordered_BV, jnp.inf).min(-1, keepdims=True)
    return jnp.where((x_BV >= least_B1) | ~cuts_B[:, None], x_BV, -jnp.inf)

  def drawn(x_BV):
    x_BV = x_BV / jnp.where(temperature_B == 0, 1, temperature_B)[:, None]
    x_BV = jax.lax.cond((cuts_B & (temperature_B != 0)).any(), cut, same, x_BV)
    one_B = jax.vmap(jax.random.categorical)(keys_B, x_BV).astype(jnp.int32)
    return jnp.where(temperature_B == 0, greedy_B, one_B)

  return jax.lax.cond((temperature_B != 0).any(), drawn, lambda _: greedy_B, logits_BV)


def _penalize(logits_V, recent_Q, penalty):
  V = logits_V.shape[0]
  slot_Q = jnp.where(recent_Q == NOTHING, V, recent_Q)  # slot V does not exist
  seen_V = jnp.zeros(V, bool).at[slot_Q].set(True, mode="drop")
  lower_V = jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
  return jnp.where(seen_V, lower_V, logits_V)
