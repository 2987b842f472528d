"""Memorizing Transformers: the store, compared with a brute-force search of all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infini_jax.models.mixers.base import Chunk, Tokens
from infini_jax.models.mixers.memorizing import Memorizing
from infini_jax.models.mixers.transformer_xl import TransformerXL
from tests.tiny import model_config

B, S, N, H, K, E, M, TOP = 2, 4, 4, 4, 2, 8, 6, 3
T = S * N
CONFIG = model_config(
  mixer="memorizing", segment_length=N, heads=H, kv_heads=K, head_dim=E, rope_theta=100.0,
  layers=3, knn_layers=(2,), knn_memory=M, knn_top=TOP,
)  # fmt: skip


def mixer(gate):
  made = Memorizing(CONFIG, nnx.Rngs(0))
  made.beta_H[...] = jnp.float32(gate)
  return made


def near(q, k, v, reset, mask):
  """One lane: the read-out of the M newest earlier keys of the document, and where there is one."""
  out, found = np.zeros((T, H, E)), np.zeros(T, bool)
  document = np.repeat(np.cumsum(reset), N)
  for t in range(T):
    start = t // N * N
    stored = np.arange(max(0, start - M), start)
    places = stored[mask[stored] & (document[stored] == document[t])]
    found[t] = len(places) > 0
    for h in range(H):
      score = k[places, h // (H // K)] @ q[t, h]
      best = np.argsort(-score)[:TOP]
      if len(best):
        weight = np.exp((score[best] - score[best].max()) / E**0.5)
        out[t, h] = weight / weight.sum() @ v[places[best], h // (H // K)]
  return out, found


@pytest.mark.parametrize("pieces", [(S,), (1, 1, 1, 1), (1, 3)], ids=str)
def test_is_transformer_xl_mixed_with_the_nearest_of_the_store(rng, pieces):
  q = rng.standard_normal((B, T, H, E))
  k, v = rng.standard_normal((2, B, T, K, E))
  gate = rng.standard_normal(H)
  reset = np.array([[True, False, False, False], [False, False, True, False]])
  mask = np.ones((B, T), bool)
  mask[1, 2 * N - 1] = False  # the first document of this lane ends before its segment does

  ours, xl = mixer(gate), TransformerXL(CONFIG, nnx.Rngs(0))
  state, local_state = ours.state(B, layer=1), xl.state(B)

  @jax.jit
  def read(arrays, chunk, state, local_state):
    tokens = Tokens(*arrays, x_BTD=None, project=None)
    return ours(tokens, chunk, state), xl(tokens, chunk, local_state)

  outs, locals_, begin = [], [], 0
  for piece in pieces:
    part = slice(begin * N, (begin + piece) * N)
    arrays = [jnp.float32(x[:, part]) for x in (q, k, v)]
    chunk = Chunk(reset[:, begin : begin + piece], mask[:, part])
    (out, state), (local, local_state) = read(arrays, chunk, state, local_state)
    outs.append(out)
    locals_.append(local)
    begin += piece
  got, local = np.concatenate(outs, 1), np.concatenate(locals_, 1)

  g = 1 / (1 + np.exp(-gate))[None, :, None]
  for b in range(B):
    recalled, found = near(q[b], k[b], v[b], reset[b], mask[b])
    expected = np.where(found[:, None, None], g * recalled + (1 - g) * local[b], local[b])
    real = mask[b]
    np.testing.assert_allclose(got[b][real], expected[real], rtol=1e-4, atol=1e-5)
    assert found.any() and not found.all()


def test_the_store_and_the_cache_have_no_gradient_and_the_gate_has(rng):
  q = jnp.float32(rng.standard_normal((B, T, H, E)))

  def later(kv, gate):
    made = mixer(0.0)
    made.beta_H[...] = gate
    return made(Tokens(q, kv, kv, None, None), Chunk(), made.state(B, layer=1))[0][:, 3 * N :].sum()

  kv = jnp.float32(rng.standard_normal((B, T, K, E)))
  grad, gate = jax.jit(jax.grad(later, (0, 1)))(kv, jnp.zeros(H))
  np.testing.assert_array_equal(grad[:, : 3 * N], 0, "what was stored has no gradient")
  assert np.abs(grad[:, 3 * N :]).max() > 0 and np.abs(gate).min() > 0


def test_layers_without_a_store_are_transformer_xl(rng):
  assert Memorizing(CONFIG, nnx.Rngs(0)).groups() == ((0, 1), (1, 2), (2, 3))
  assert type(mixer(0.0).state(B, layer=0)) is type(TransformerXL(CONFIG, nnx.Rngs(0)).state(B))
