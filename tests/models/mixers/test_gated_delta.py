"""Three forms of gated delta, compared with loops in float64, forward and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.models import bind
from infini_jax.ops import MemoryState, Rule, infini_attention
from infini_jax.ops import memory as memory_module
from infini_jax.ops import stream as stream_module
from infini_jax.ops.attention import Segment
from tests.ops import reference
from tests.tiny import array, fake_params, model_config

B, K, G, E, U, N, T = 2, 2, 2, 4, 6, 4, 10  # two whole segments and a short one
H, S = K * G, 3
RULE = Rule("delta")
PLAIN = dict(rope_theta=100.0)


def inputs(rng):
  f = lambda *shape: rng.standard_normal(shape)
  k = np.asarray(reference.sigma(f(B, 3, K, E)), np.float64)
  memory = np.einsum("BTKE,BTKU->BKEU", k, f(B, 3, K, U)), k.sum(1)
  return f(B, T, H, E), f(B, T, K, E), f(B, T, K, U), f(H), *memory, 2 * f(B, T, K)


def whole(implementation):
  def call(q, k, v, beta, M, z, decay, reset, mask):
    out, state = infini_attention(
      q, k, v, beta, MemoryState(M, z), segment_length=N, rule=RULE, reset_BS=reset, mask_BT=mask,
      decay_BTK=decay, implementation=implementation, **PLAIN,
    )  # fmt: skip
    return out, *state

  return call


def token_by_token(q, k, v, beta, M, z, decay, reset, mask):
  empty = Segment(jnp.zeros((B, N, K, E)), jnp.zeros((B, N, K, U)), jnp.zeros(B, jnp.int32))
  stream = stream_module.open_stream(MemoryState(M, z), empty, RULE, scored=True)

  def token(stream, xs):
    q, k, v, decay = (x[:, None] for x in xs)
    real = jnp.ones((B, 1), bool)
    out, stream = stream_module.extend_stream(
      q, k, v, beta, stream, real, rule=RULE, decay_BTK=decay, **PLAIN
    )
    return stream, out[:, 0]

  xs = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, decay))
  stream, out = jax.lax.scan(token, stream, xs)
  return jnp.moveaxis(out, 0, 1), *memory_module.commit(stream.memory, stream.pending, RULE)


# The scan is the definition, with which test_base.py compares the form of a chunk.
@pytest.mark.parametrize(
  "form", [pytest.param("scan", marks=pytest.mark.slow), "parallel", "stream"]
)
def test_equals_float64_loops_forward_and_gradient(rng, form):
  arrays = inputs(rng)
  reset, mask = np.zeros((B, S), bool), np.ones((B, T), bool)
  if form != "stream":
    reset, mask = rng.random((B, S)) < 0.3, rng.random((B, T)) < 0.8
    mask[:, ::N] = True
  weights = [rng.standard_normal(s) for s in ((B, T, H, U), (B, K, E, U), (B, K, E))]

  def loops(*arrays):
    *rest, decay, reset, mask = arrays
    return reference.infini_attention(
      *rest, decay=decay, reset=reset, mask=mask, segment_length=N, rule=RULE, cut=False, **PLAIN
    )

  def graded(f, dtype):
    def loss(arrays, reset, mask, weights):
      out, *rest = f(*arrays, reset, mask)
      outs = (out * mask[..., None, None].astype(dtype), *rest)
      return sum((o * w.astype(dtype)).sum() for o, w in zip(outs, weights, strict=True)), outs

    flags = {"reset": array(reset), "mask": array(mask), "weights": weights}
    return partial(jax.jit(jax.value_and_grad(loss, has_aux=True)), **flags)

  with jax.enable_x64(True):
    (_, want), want_grads = jax.tree.map(np.asarray, graded(loops, np.float64)(arrays))
  f = token_by_token if form == "stream" else whole(form)
  single = tuple(array(x, jnp.float32) for x in arrays)
  (_, got), grads = graded(f, np.float32)(single)
  for name, a, b in zip(("out", "M", "z"), got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
  for name, a, b in zip("q k v beta M z decay".split(), grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"gradient of {name}")


def test_a_score_that_is_large_is_delta_and_one_that_is_small_forgets(rng):
  config = model_config(mixer="gated_delta", kv_heads=1)
  params = fake_params(config)
  tokens = rng.integers(0, config.vocab_size, (2, 24))

  @partial(jax.jit, static_argnums=0)
  def read(config, params, tokens):
    model = bind(config, params)
    return model(tokens, model.state(2))[1]

  def memory(bias):
    mixer = params["blocks"]["attention"]["mixer"]
    params["blocks"]["attention"]["mixer"] = mixer | {"b_decay_K": jnp.full((2, 1), bias)}
    return read(config, params, tokens)

  delta = model_config(rule="delta", kv_heads=1)
  before = jax.tree.map(lambda x: x, params)
  for name in ("w_decay_DK", "b_decay_K"):
    before["blocks"]["attention"]["mixer"].pop(name)
  wanted = read(delta, before, tokens)
  kept, forgotten = memory(40.0), memory(-40.0)
  np.testing.assert_allclose(kept.M_BKEU, wanted.M_BKEU, rtol=1e-5, atol=1e-6)
  last = read(delta, before, tokens[:, -8:])  # the state after the last segment alone
  np.testing.assert_allclose(forgotten.z_BKE[0], last.z_BKE[0], rtol=1e-4, atol=1e-5)
