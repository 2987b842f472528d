"""Softmax attention, compared with float64 and between its forms, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import attention as module
from infini_jax.ops.attention import UNSEEN, Scoring, attention, segment_attention
from tests.tiny import array

B, T, K, G, E, U = 2, 12, 2, 2, 4, 6
H = K * G


def draw(rng, keys=T):
  f = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return f(B, T, H, E), f(B, keys, K, E), f(B, keys, K, U)


def plain(
  q, k, v, q_position, k_position, q_document, k_document, scale=E**-0.5, softcap=1e9, reach=UNSEEN
):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros((*q.shape[:3], v.shape[3]))
  for b, t, h in np.ndindex(*q.shape[:3]):
    seen = (k_position[b] <= q_position[b, t]) & (k_document[b] == q_document[b, t])
    seen &= k_position[b] > q_position[b, t] - reach
    score = softcap * np.tanh(k[b, seen, h // G] @ q[b, t, h] * scale / softcap)
    weight = np.exp(score - score.max())
    out[b, t, h] = weight @ v[b, seen, h // G] / weight.sum()
  return out


def places(rng, cached=0):
  """Positions of a cache and the tokens; each lane has a document start and a hidden key."""
  position = np.broadcast_to(np.arange(cached + T, dtype=np.int32), (B, cached + T)).copy()
  document = (position >= np.array([[3], [7]])).astype(np.int32)
  key = position.copy()
  key[0, cached + 1] = UNSEEN
  return position[:, cached:], key, document[:, cached:], document


def graded(f, weight):
  return jax.jit(jax.value_and_grad(lambda *a: (f(*a) * weight).sum(), (0, 1, 2)))


@pytest.mark.parametrize("cached", [0, 5])
def test_equals_float64_with_documents_and_hidden_keys(rng, cached):
  arrays, where = draw(rng, cached + T), places(rng, cached)
  got = jax.jit(attention)(*map(jnp.asarray, (*arrays, *where)))
  np.testing.assert_allclose(got, plain(*arrays, *where), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked_by", [int, jnp.int32])
def test_scale_softcap_and_reach_equal_float64(rng, masked_by):
  """The reach of a layer is a number, or one computed for each layer."""
  arrays, where = draw(rng, 5 + T), places(rng, 5)
  how = {"scale": 0.9, "softcap": 1.5}
  run = lambda reach, *args: attention(*args, scoring=Scoring(**how), reach=reach)
  fixed = {"static_argnums": 0} if masked_by is int else {}
  got = jax.jit(run, **fixed)(masked_by(4), *map(jnp.asarray, (*arrays, *where)))
  expected = plain(*arrays, *where, **how, reach=4)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(expected - plain(*arrays, *where)).max() > 1e-2


@pytest.mark.parametrize(
  "aligned,rows,most",
  [
    pytest.param(aligned, *sizes, marks=[pytest.mark.slow] * (aligned == (i % 2)))
    for i, sizes in enumerate([(5, 16), (1, 16), (4, 2)])
    for aligned in (True, False)
  ],
)
def test_blocks_of_rows_equal_all_at_once(rng, monkeypatch, rows, most, aligned):
  arrays, where = draw(rng), [array(x) for x in places(rng)]
  weight = rng.standard_normal((B, T, H, U)).astype(np.float32)
  run = lambda: graded(lambda *a: attention(*a, *where, aligned=aligned), weight)(*arrays)
  whole = run()
  monkeypatch.setattr(module, "BLOCK_ROWS", rows)
  monkeypatch.setattr(module, "MAX_BLOCKS", most)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(compare, run(), whole)


def test_blocks_look_at_no_key_behind_them(rng, monkeypatch):
  """Aligned rows do not load later keys: the largest block of scores is the last."""
  monkeypatch.setattr(module, "BLOCK_ROWS", 4)
  where = [jnp.arange(T, dtype=jnp.int32)[None]] * 2
  program = str(jax.make_jaxpr(lambda *a: attention(*a, *where, aligned=True))(*draw(rng)))
  for keys in (4, 8, 12):
    assert f"[{B},{K},{G},4,{keys}]" in program


@pytest.mark.parametrize("masked", [False, True])
def test_segments_one_after_the_other_equal_side_by_side(rng, monkeypatch, masked):
  S, N = 3, 4
  arrays = [x.reshape(B, S, N, *x.shape[2:]) for x in draw(rng)]
  mask = None
  if masked:
    mask = array(np.arange(N)[None, None] < rng.integers(1, N + 1, (B, S, 1)))
  weight = rng.standard_normal((B, S, N, H, U)).astype(np.float32)
  weight = weight if mask is None else np.where(mask[..., None, None], weight, 0)
  run = lambda: graded(lambda *a: segment_attention(*a, mask), weight)(*arrays)
  whole = run()
  monkeypatch.setattr(module, "SCORE_BYTES", 0)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(compare, run(), whole)


def test_segments_see_themselves_alone_and_backwards(rng):
  S, N = 3, 4
  q, k, v = draw(rng)
  got = jax.jit(segment_attention)(*(x.reshape(B, S, N, *x.shape[2:]) for x in (q, k, v)))
  place = np.broadcast_to(np.arange(T), (B, T))
  expected = plain(q, k, v, place, place, place // N, place // N)
  np.testing.assert_allclose(got.reshape(B, T, H, U), expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite_with_a_finite_gradient(rng):
  hidden = jnp.full((1, T), UNSEEN, jnp.int32)
  value, grads = graded(
    lambda *a: attention(*a, jnp.zeros((1, T), jnp.int32), hidden), np.float32(1)
  )(*draw(rng))
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
