"""The Compressive Transformer and the loss of its convolution, compared with a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infini_jax.models.mixers.base import Chunk, Tokens
from infini_jax.models.mixers.compressive import Compressive
from tests.ops.reference import rotate
from tests.tiny import array, model_config

S, N, H, K, E, D, RATE, C = 5, 4, 4, 2, 8, 6, 2, 4
T, THETA = S * N, 100.0


def config(compression):
  return model_config(
    mixer="compressive", width=D, segment_length=N, heads=H, kv_heads=K, head_dim=E,
    rope_theta=THETA, compression=compression, compression_rate=RATE, compressed_memory=C,
  )  # fmt: skip


def attend(q, k, v, seen, places):
  """Attention of q (T,H,E) to k, v (M,K,E); `places` of queries and keys, or None: no positions."""
  outs = []
  for h in range(H):
    query, key = q[:, h], k[:, h // (H // K)]
    if places is not None:
      query, key = rotate(query, places[0], THETA), rotate(key, places[1], THETA)
    score = jnp.where(seen, query @ key.T / E**0.5, -jnp.inf)
    outs.append(jax.nn.softmax(score, axis=1) @ v[:, h // (H // K)])
  return jnp.stack(outs, 1)


def plain(x, weights, kernel, reset):
  """One lane, x (T,D): the output and the loss of the convolution, segment by segment."""
  still = jax.lax.stop_gradient
  project = lambda x, ws=weights: [jnp.einsum("td,dke->tke", x, w) for w in ws[1:]]
  queries = jnp.einsum("td,dhe->the", x, weights[0])
  outs, losses, old, before = [], [], jnp.zeros((0, D)), None
  for s in range(S):
    own = x[s * N : (s + 1) * N]
    q = queries[s * N : (s + 1) * N]
    if reset[s]:
      old, before = jnp.zeros((0, D)), None
    parts = [still(old[-C:])] + ([] if before is None else [still(before)])
    past = jnp.concatenate(parts)
    pairs = [jnp.concatenate(two) for two in zip(project(past), project(own), strict=True)]
    M = len(past)
    place = C + N - M + np.arange(M + N)
    if before is None:
      place = np.concatenate([C - len(past) + np.arange(len(past)), C + N + np.arange(N)])
    seen = np.concatenate([np.ones((N, M), bool), np.tri(N, dtype=bool)], 1)
    outs.append(attend(q, *pairs, seen, (C + N + np.arange(N), place)))
    loss = 0.0
    if before is not None:
      groups = still(before).reshape(N // RATE, RATE, D)
      short = groups.mean(1) if kernel is None else jnp.einsum("crd,rdi->ci", groups, kernel)
      if kernel is not None:
        frozen = still(weights)
        read = still(attend(q, *project(before), np.ones((N, N), bool), None))
        again = attend(still(q), *project(short, frozen), np.ones((N, N // RATE), bool), None)
        loss = ((read - again) ** 2).mean()
      old = jnp.concatenate([old, still(short)])
    losses.append(loss)
    before = own
  return jnp.concatenate(outs), sum(losses) / S


@pytest.mark.parametrize("compression", [pytest.param("conv", marks=pytest.mark.slow), "mean"])
def test_equals_the_loop_forward_and_gradient(rng, compression):
  x, weight = rng.standard_normal((2, T, D)), rng.standard_normal((2, T, H, E))
  weights = [rng.standard_normal((D, heads, E)) / D**0.5 for heads in (H, K, K)]
  kernel = rng.standard_normal((RATE, D, D)) if compression == "conv" else None
  reset = np.array([[False, False, False, True, False], [False] * 5])

  def reference(x, weights, kernel, weight):
    both = [plain(x[b], weights, kernel, reset[b]) for b in range(2)]
    out, loss = jnp.stack([out for out, _ in both]), sum(loss for _, loss in both) / 2
    return (out * weight).sum() + 3.0 * loss, (out, loss)

  def ours(x, weights, kernel, weight):
    mixer = Compressive(config(compression), nnx.Rngs(0))
    if kernel is not None:
      mixer.w_compress_RDI[...] = kernel

    def project(x, *, frozen=False):
      ws = jax.lax.stop_gradient(weights) if frozen else weights
      return tuple(jnp.einsum("btd,dke->btke", x, w) for w in ws[1:])

    q = jnp.einsum("btd,dhe->bthe", x, weights[0])
    tokens = Tokens(q, *project(x), x, project)
    out, state = mixer(tokens, Chunk(array(reset)), mixer.state(2))
    loss = Compressive.auxiliary(state)
    return (out * weight).sum() + 3.0 * loss, (out, loss)

  # Random arrays are arguments, so that the compiled programs are found again in the next run.
  arguments = (x, weights, kernel, weight)
  with jax.enable_x64(True):
    whole = jax.tree.map(jnp.asarray, arguments)
    expected = jax.device_get(
      jax.jit(jax.value_and_grad(reference, (0, 1, 2), has_aux=True))(*whole)
    )
  got = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(
    *jax.tree.map(jnp.float32, arguments)
  )
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, (got[0][1], got[1]), (expected[0][1], expected[1]))
