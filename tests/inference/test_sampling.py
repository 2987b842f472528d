"""Sampling follows a plain reference in NumPy, and each lane has its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference.sampling import (
  LEAST,
  MOST,
  NOTHING,
  Sampling,
  Settings,
  sample,
  sample_lanes,
)
from tests.tiny import array

DRAWS = 4000


def many(logits_BV, keys, recent_BQ, sampling):
  draw = lambda key: sample(logits_BV, jax.random.split(key, len(logits_BV)), sampling, recent_BQ)
  return jax.vmap(draw)(keys)


draw = jax.jit(many, static_argnums=3)


def frequencies(logits_BV, sampling, seed, recent_BQ=None):
  tokens = draw(logits_BV, jax.random.split(jax.random.key(seed), DRAWS), recent_BQ, sampling)
  V = logits_BV.shape[1]
  return np.stack([np.bincount(t, minlength=V) / DRAWS for t in np.asarray(tokens).T])


def reference(logits_V, sampling, recent=()):
  """The probabilities of one lane's next token."""
  logits = logits_V.astype(np.float64).copy()
  for token in set(recent) - {NOTHING}:
    logits[token] *= (1 / sampling.repetition_penalty) ** np.sign(logits[token])
  p = np.exp(logits / sampling.temperature)
  order = np.argsort(-p)[: sampling.top_k or len(p)]
  share = np.cumsum(p[order]) / p[order].sum()
  kept = order[: int(np.searchsorted(share, sampling.top_p)) + 1] if sampling.top_p < 1 else order
  out = np.zeros_like(p)
  out[kept] = p[kept] / p[kept].sum()
  return out


@pytest.mark.parametrize(
  "sampling",
  [
    Sampling(0.5, 1.0),
    Sampling(2.0, 1.0),
    Sampling(1.0, 0.5),
    Sampling(0.8, 0.9, 0, 1.5),
    Sampling(1.0, 1.0, 3),
    Sampling(1.3, 0.6, 5, 0.7),
    Sampling(1.0, 0.05, 100, 2.0),
  ],
  ids=str,
)
def test_draws_follow_the_reference(rng, sampling):
  logits_BV = (rng.standard_normal((3, 20)) * 1.5).astype(np.float32)
  recent_BQ = rng.integers(0, 20, (3, 6)).astype(np.int32)
  recent_BQ[0, :4] = NOTHING
  got = frequencies(array(logits_BV), sampling, int(rng.integers(2**31)), recent_BQ)
  for logits_V, recent, frequency in zip(logits_BV, recent_BQ, got, strict=True):
    expected = reference(logits_V, sampling, recent.tolist())
    outside = np.flatnonzero((expected == 0) & (frequency > 0))
    assert not outside.size, f"drew {outside}, which {sampling} leaves out"
    bound = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-3
    assert (np.abs(frequency - expected) < bound).all(), (frequency, expected)


def test_greedy_takes_the_most_likely_whatever_the_seed(rng):
  logits_BV = array(rng.standard_normal((5, 11)), jnp.float32)
  for seed in range(3):
    keys = jax.random.split(jax.random.key(seed), 5)
    token_B = sample(logits_BV, keys, Sampling(temperature=0, top_k=3, top_p=0.1))
    assert token_B.dtype == jnp.int32
    np.testing.assert_array_equal(token_B, np.argmax(logits_BV, 1))


def test_the_narrowest_choices_are_greedy(rng):
  logits_BV = array(rng.standard_normal((5, 11)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 5)
  for how in ((MOST, 1.0, 1), (1.0, 1e-9, 0), (1.0, 1e-300, 0), (LEAST, 1.0, 0), (LEAST, 0.9, 7)):
    token_B = sample(logits_BV, keys, Sampling(*how))
    assert token_B.tolist() == np.argmax(logits_BV, 1).tolist(), how


def test_greedy_decoding_uses_the_penalty():
  logits_BV = array([[3.0, 2.0, -1.0], [-1.0, -1.5, -9.0]])
  recent_BQ = array([[0, NOTHING], [0, 0]], jnp.int32)
  keys = jax.random.split(jax.random.key(0), 2)
  token_B = sample(logits_BV, keys, Sampling(0.0, repetition_penalty=2.0), recent_BQ)
  assert token_B.tolist() == [1, 1], "3 / 2 < 2; -1 * 2 < -1.5; no token stands for an empty slot"


def test_same_key_same_token_and_lanes_draw_alone():
  logits_BV, keys = jnp.zeros((64, 100)), jax.random.split(jax.random.key(0), 64)
  a, b = (sample(logits_BV, keys, Sampling(1.0, 1.0)) for _ in range(2))
  one = sample(logits_BV[:1], keys[7:8], Sampling(1.0, 1.0))
  assert np.array_equal(a, b) and one[0] == a[7]
  assert len(np.unique(a)) > 20, "the lanes draw alike: one key must not serve them all"


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"temperature": -0.1}, "0 .greedy. or more"),
    ({"temperature": float("nan")}, "0 .greedy. or more"),
    ({"temperature": 1e-40}, "0 .greedy. or more, from 1e-15"),
    ({"temperature": 1e38}, "0 .greedy. or more, from 1e-15"),
    ({"top_p": float("nan")}, "above 0"),
    ({"top_p": 0.0}, "above 0"),
    ({"top_p": 1.1}, "at most 1"),
    ({"top_k": -1}, "0 .off. or more"),
    ({"repetition_penalty": 0.0}, "must be above 0"),
    ({"repetition_penalty": float("inf")}, "must be above 0"),
  ],
)
def test_impossible_choices_are_refused(fields, message):
  with pytest.raises(InputError, match=message):
    Sampling(**fields)


def test_lanes_with_settings_of_their_own_draw_as_each_alone(rng):
  hows = [
    Sampling(0.0, 1.0, 0, 1.5),
    Sampling(0.9, 0.9),
    Sampling(1.0, 1.0, 5),
    Sampling(0.7, 0.8, 3, 1.3),
    Sampling(1.3, 1.0, 99),
    Sampling(0.0),
  ]
  B, V = len(hows), 30
  logits_BV = array(2 * rng.standard_normal((B, V)), jnp.float32)
  recent_BQ = array(rng.integers(-1, V, (B, 8)), jnp.int32)
  keys_B = jax.random.split(jax.random.key(int(rng.integers(2**31))), B)
  columns = zip(
    *((h.temperature, h.top_p, h.top_k, h.repetition_penalty) for h in hows), strict=True
  )
  kinds = (np.float32, np.float32, np.int32, np.float32)
  settings = Settings(*(array(np.array(x, k)) for x, k in zip(columns, kinds, strict=True)))
  got_B = jax.jit(sample_lanes)(logits_BV, keys_B, settings, recent_BQ)
  one = lambda i: sample(logits_BV[i : i + 1], keys_B[i : i + 1], hows[i], recent_BQ[i : i + 1])
  assert got_B.tolist() == [int(one(i)[0]) for i in range(B)]
