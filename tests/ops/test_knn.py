"""Attention to the nearest keys against a brute-force search in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import knn
from infini_jax.ops.knn import nearest_attention
from tests.tiny import array

B, T, H, K, E, U, M = 2, 5, 4, 2, 8, 8, 12


def plain(q, k, v, seen, top):
  """Every key is compared, one query at a time."""
  out = np.zeros((B, T, H, U))
  for b, t, h in np.ndindex(B, T, H):
    places = np.flatnonzero(seen[b])
    score = k[b, places, h // (H // K)] @ q[b, t, h]
    best = np.argsort(-score, kind="stable")[:top]
    if len(best):
      weight = np.exp((score[best] - score[best].max()) / E**0.5)
      out[b, t, h] = weight / weight.sum() @ v[b, places[best], h // (H // K)]
  return out


def inputs(rng):
  q, k, v = (rng.standard_normal(s) for s in ((B, T, H, E), (B, M, K, E), (B, M, K, U)))
  seen = rng.random((B, M)) < 0.6
  return q, k, v, seen


@pytest.mark.parametrize("top", [1, 3, M, 100])
@pytest.mark.parametrize("score_bytes", [1, 2**28], ids=["row by row", "at once"])
def test_equals_brute_force(rng, monkeypatch, top, score_bytes):
  monkeypatch.setattr(knn, "SCORE_BYTES", score_bytes)
  q, k, v, seen = inputs(rng)
  got = nearest_attention(*map(jnp.float32, (q, k, v)), array(seen), top=top)
  np.testing.assert_allclose(got, plain(q, k, v, seen, top), rtol=1e-4, atol=1e-5)


def test_a_lane_that_sees_nothing_gets_nothing(rng):
  q, k, v, seen = inputs(rng)
  seen[1] = False
  seen[0] = np.arange(M) == 3
  got = nearest_attention(*map(jnp.float32, (q, k, v)), array(seen), top=4)
  np.testing.assert_array_equal(got[1], 0.0)
  alone = np.repeat(v[0, 3][None], T, 0)[:, np.arange(H) // (H // K)]
  np.testing.assert_allclose(got[0], alone, rtol=1e-5, err_msg="one key: its value, whole")


def test_the_gradient_reaches_queries_and_never_the_store(rng):
  q, k, v, seen = inputs(rng)
  seen[:] = True

  def loss(q, k, v, dtype=jnp.float32):
    return nearest_attention(*map(dtype, (q, k, v)), array(seen), top=M).sum()

  grads = jax.jit(jax.grad(loss, (0, 1, 2)))(*map(jnp.float32, (q, k, v)))
  np.testing.assert_array_equal(grads[1], 0.0)
  np.testing.assert_array_equal(grads[2], 0.0)
  step, direction = 1e-5, rng.standard_normal(q.shape)
  both = [plain(q + s * direction, k, v, seen, M).sum() for s in (step, -step)]
  np.testing.assert_allclose(
    (np.asarray(grads[0]) * direction).sum(), (both[0] - both[1]) / (2 * step), rtol=1e-3, atol=1e-4
  )
