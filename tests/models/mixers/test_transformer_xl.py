"""Transformer-XL, compared with the whole score matrix in float64: visible keys and distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infini_jax.models.mixers.base import Chunk, Tokens
from infini_jax.models.mixers.transformer_xl import LastSegment, TransformerXL
from tests.ops.reference import rotate
from tests.tiny import array, model_config

B, S, N, H, K, E = 2, 3, 4, 4, 2, 8
T = S * N
THETA = 100.0
CONFIG = model_config(
  mixer="transformer_xl", segment_length=N, heads=H, kv_heads=K, head_dim=E, rope_theta=THETA
)


def plain(q, k, v, before, reset, mask):
  """One lane: q (T,H,E), k and v (T,K,E); `before` (k, v, seen) of the N tokens before them.

  Positions are counted through the text; only distances matter. Keys of an earlier segment have no
  gradient.
  """
  keys, values = jnp.concatenate([before[0], k]), jnp.concatenate([before[1], v])
  seen = np.concatenate([before[2], mask])
  place = np.arange(-N, T)
  segment = place // N
  document = np.concatenate([[-1] * N, np.repeat(np.cumsum(reset), N)])
  if not reset[0]:
    document[:N] = 0
  pair = lambda own: (place[None] <= place[N:, None]) & seen[None] & own
  same = segment[None] == segment[N:, None]
  last = (segment[None] == segment[N:, None] - 1) & (document[None] == document[N:, None])
  outs = []
  for h in range(H):
    key, value = keys[:, h // (H // K)], values[:, h // (H // K)]
    turned = rotate(q[:, h], place[N:], THETA)
    scores, weights = [], []
    for own, see in ((pair(same), lambda x: x), (pair(last), jax.lax.stop_gradient)):
      score = turned @ rotate(see(key), place, THETA).T / E**0.5
      scores.append(jnp.where(own, score, -jnp.inf))
      weights.append(see(value))
    weight = jax.nn.softmax(jnp.concatenate(scores, 1), axis=1)
    outs.append(weight @ jnp.concatenate(weights))
  return jnp.stack(outs, 1)


@pytest.mark.parametrize("short", [0, 3], ids=["whole", "short"])
def test_equals_the_score_matrix_forward_and_gradient(rng, short):
  q, weight = rng.standard_normal((2, B, T, H, E))
  k, v = rng.standard_normal((2, B, T, K, E))
  before_k, before_v = rng.standard_normal((2, B, N, K, E))
  seen = np.array([[True] * N, [True, True, False, False]])
  reset = np.array([[False, False, True], [False, True, False]])
  mask = np.ones((B, T), bool)
  mask[0, 2 * N - 2 : 2 * N] = False  # the first document ends early
  end = T - short
  weight = weight * mask[..., None, None]

  def reference(q, k, v, before_k, before_v):
    outs = [
      plain(q[b], k[b], v[b], (before_k[b], before_v[b], seen[b]), reset[b], mask[b])
      for b in range(B)
    ]
    return jnp.stack(outs)

  def ours(q, k, v, before_k, before_v):
    state = LastSegment(jnp.float32(before_k), jnp.float32(before_v), array(seen))
    cut = lambda x: x[:, :end]
    mixer = TransformerXL(CONFIG, nnx.Rngs(0))
    tokens = Tokens(*map(cut, (q, k, v)), x_BTD=None, project=None)
    out, _ = mixer(tokens, Chunk(reset, cut(mask)), state)
    return out

  def graded(f):
    def summed(*a):
      *arrays, weight = a
      out = f(*arrays)
      return (out * weight[:, :end]).sum(), out

    return jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))

  arrays = (q, k, v, before_k, before_v, weight)  # arguments, so that the program is kept
  with jax.enable_x64(True):
    cut = lambda *a: reference(*a)[:, :end]
    expected = jax.device_get(graded(cut)(*map(jnp.asarray, arrays)))
  got = graded(ours)(*map(jnp.float32, arrays))
  np.testing.assert_allclose(got[0][1], expected[0][1], rtol=1e-4, atol=1e-5)
  for name, a, b in zip("qkv", got[1], expected[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"gradient of {name}")


def test_nothing_flows_back_into_the_segment_before(rng):
  q = jnp.float32(rng.standard_normal((B, T, H, E)))
  mixer = TransformerXL(CONFIG, nnx.Rngs(0))

  def later(kv):
    return mixer(Tokens(q, kv, kv, None, None), Chunk(), mixer.state(B))[0][:, 2 * N :].sum()

  grad = jax.jit(jax.grad(later))(jnp.float32(rng.standard_normal((B, T, K, E))))
  assert np.abs(grad[:, 2 * N :]).max() > 0
  np.testing.assert_array_equal(grad[:, : 2 * N], 0, "the cache of Transformer-XL has no gradient")
