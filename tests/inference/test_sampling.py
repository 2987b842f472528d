"""Which tokens can be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference.sampling import Sampling, sample

DRAWS = 20_000


def draw(probability_V, sampling, seed):
  logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(probability_V)), (DRAWS, len(probability_V)))
  tokens = jax.jit(sample, static_argnums=2)(logits_BV, jax.random.key(seed), sampling)
  return np.bincount(np.asarray(tokens), minlength=len(probability_V)) / DRAWS


def test_greedy_takes_the_most_likely(rng):
  logits_BV = jnp.asarray(rng.standard_normal((5, 9)), jnp.float32)
  tokens_B = sample(logits_BV, jax.random.key(0), Sampling(temperature=0))
  np.testing.assert_array_equal(tokens_B, np.asarray(logits_BV).argmax(-1))


def test_temperature_one_draws_the_distribution(rng):
  probability = rng.dirichlet(np.ones(6)).astype(np.float32)
  shares = draw(probability, Sampling(temperature=1, top_p=1), rng.integers(2**31))
  error = 5 * np.sqrt(0.25 / DRAWS)  # five standard deviations at worst
  assert np.abs(shares - probability).max() < error


def test_temperature_sharpens(rng):
  probability = np.array([0.5, 0.3, 0.2], np.float32)
  expected = probability**2 / (probability**2).sum()
  shares = draw(probability, Sampling(temperature=0.5, top_p=1), rng.integers(2**31))
  assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / DRAWS)


@pytest.mark.parametrize("top_p,kept", [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.96, 4)])
def test_top_p_draws_the_fewest_tokens_that_reach_it(rng, top_p, kept):
  probability = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
  order = rng.permutation(4)
  shares = draw(probability[order], Sampling(temperature=1, top_p=top_p), rng.integers(2**31))
  expected = np.where(np.arange(4) < kept, probability, 0)
  expected = (expected / expected.sum())[order]
  assert set(np.flatnonzero(shares)) == set(np.flatnonzero(expected))
  assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / DRAWS)


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_settings_are_refused(fields):
  with pytest.raises(InputError, match="must be"):
    Sampling(**fields)
