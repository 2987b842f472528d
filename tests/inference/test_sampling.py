import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference.sampling import Sampling, sample

draw = jax.jit(jax.vmap(sample, (None, 0, None)), static_argnums=2)
DRAWS = 4000


def frequencies(logits_BV, sampling, seed):
  tokens = draw(logits_BV, jax.random.split(jax.random.key(seed), DRAWS), sampling)
  V = logits_BV.shape[1]
  return np.stack([np.bincount(t, minlength=V) / DRAWS for t in np.asarray(tokens).T])


def test_greedy_takes_the_most_likely_whatever_the_seed(rng):
  logits = jnp.asarray(rng.standard_normal((5, 11)), jnp.float32)
  for seed in range(3):
    token_B = sample(logits, jax.random.key(seed), Sampling(temperature=0))
    assert token_B.dtype == jnp.int32
    np.testing.assert_array_equal(token_B, np.argmax(logits, 1))


def test_same_key_same_tokens(rng):
  logits = jnp.zeros((64, 100))
  a, b, c = (sample(logits, jax.random.key(k), Sampling(1.0, 1.0)) for k in (0, 0, 1))
  assert np.array_equal(a, b) and not np.array_equal(a, c)
  assert len(np.unique(a)) > 20, "the lanes draw alike: one key must not serve them all"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax(rng, temperature):
  logits = jnp.asarray(rng.standard_normal((2, 6)) * 2, jnp.float32)
  got = frequencies(logits, Sampling(temperature, 1.0), int(rng.integers(2**31)))
  expected = np.asarray(jax.nn.softmax(logits / temperature))
  bound = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-3
  assert (np.abs(got - expected) < bound).all(), (got, expected)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_draws_only_the_most_likely_and_in_their_proportions(rng, top_p):
  logits = jnp.asarray(rng.standard_normal((3, 20)) * 1.5, jnp.float32)
  got = frequencies(logits, Sampling(1.0, top_p), int(rng.integers(2**31)))
  for p, frequency in zip(np.asarray(jax.nn.softmax(logits), np.float64), got, strict=True):
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    outside = np.setdiff1d(np.arange(20), kept)
    assert not frequency[outside].any(), f"drew {outside[frequency[outside] > 0]}, outside top-p"
    expected = p[kept] / p[kept].sum()
    bound = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-3
    assert (np.abs(frequency[kept] - expected) < bound).all()


def test_top_p_follows_the_temperature():
  """A low temperature sharpens first, so that fewer tokens reach the share."""
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  assert (frequencies(logits, Sampling(1.0, 0.7), 0) > 0).tolist() == [[True, True, False]]
  assert (frequencies(logits, Sampling(0.3, 0.7), 0) > 0).tolist() == [[True, False, False]]


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"temperature": -0.1}, "0 .greedy. or more"),
    ({"top_p": 0.0}, "above 0"),
    ({"top_p": 1.1}, "at most 1"),
  ],
)
def test_impossible_choices_are_refused(fields, message):
  with pytest.raises(InputError, match=message):
    Sampling(**fields)
