"""The features of pretrained model families, compared with a plain decoder in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.models import bind, init
from infini_jax.models.mixers import MIXERS
from infini_jax.ops.loss import cross_entropy
from tests.models import reference
from tests.tiny import array, changed, fake_params, model_config

B, N, T = 2, 8, 24
PLAIN = model_config(mixer="full", heads=4, segment_length=N, rope_theta=100.0)
WINDOWS = {"window": 6, "global_every": 2}
# The features that a family adds to Llama, each alone or with the feature that it needs.
ALONE = [
  {"activation": "geglu"},
  {"rope_scaling": (4.0,)},
  {"rope_scaling": (8.0, 1.0, 4.0, 64.0)},
  {"rope_scaling": (8.0, 0.1, 2.0, 64.0, 1.5)},
  {"attention_bias": True},
  {"norm_plus_one": True, "qk_norm": True},
  {"post_norms": True},
  {"embed_scale": 4.0},
  {"query_scale": 0.9},
  {"attention_softcap": 0.5},
  {"logit_softcap": 0.7},
  {"window": 6},
  WINDOWS,
  {**WINDOWS, "window_theta": 10.0},
  {"global_every": 2, "global_nope": True, "rope_scaling": (2.0, 0.1, 2.0, 64.0, 1.2)},
]
# All features at once: Gemma 3's, with Gemma 2's softcaps and Qwen 2's biases.
# A larger query_scale makes the attention so sharp that it amplifies rounding beyond `CLOSE`.
MIX = changed(
  PLAIN, layers=3, activation="geglu", rope_scaling=(8.0,), attention_bias=True, qk_norm=True,
  norm_plus_one=True, post_norms=True, embed_scale=4.0, query_scale=0.3, attention_softcap=2.0,
  logit_softcap=3.0, window=8, global_every=3, window_theta=10.0,
)  # fmt: skip
CLOSE = dict(rtol=1e-4, atol=1e-4)


def draw(rng, *shape):
  return rng.integers(0, 32, shape).astype(np.int32)


def random_params(rng, c):
  return fake_params(c, seed=int(rng.integers(2**32)))


def exact(params, tokens_BT, c):
  """The logits of the reference for every lane."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  return np.stack([reference.logits(params, lane, c) for lane in tokens_BT])


def read(c, params, tokens, state):
  model = bind(c, params)
  hidden, state = model(tokens, state)
  return model.logits(hidden), state


def extend(c, params, tokens, stream):
  model = bind(c, params)
  hidden, stream = model.extend(tokens, stream, jnp.ones(tokens.shape, bool))
  return model.logits(hidden), stream


call = jax.jit(read, static_argnums=0)
more = jax.jit(extend, static_argnums=0)


def start(c, params, tokens=0):
  """An empty state, with room for `tokens` tokens."""
  return MIXERS[c.mixer].reserve(bind(c, params).state(B), tokens)


@pytest.mark.parametrize("fields", ALONE, ids=str)
def test_each_feature_alone_equals_float64(rng, fields):
  c = changed(PLAIN, **fields)
  params, tokens = random_params(rng, c), draw(rng, B, T)
  got = call(c, params, tokens, start(c, params))[0]
  np.testing.assert_allclose(got, exact(params, tokens, c), **CLOSE)
  without = exact(params, tokens, changed(PLAIN, qk_norm=c.family.qk_norm))
  assert np.abs(got - without).max() > 1e-2, f"{fields} changes nothing"


@pytest.fixture(scope="module")
def mix():
  """Random parameters of the mix, random tokens, and their exact logits."""
  rng = np.random.default_rng()
  params, tokens = random_params(rng, MIX), draw(rng, B, T)
  return params, tokens, exact(params, tokens, MIX)


def test_all_features_together_in_one_call_by_chunks_and_by_tokens(mix):
  """With states of different sizes: the window counts tokens, not slots."""
  params, tokens, expected = mix
  got = call(MIX, params, tokens, start(MIX, params))[0]
  np.testing.assert_allclose(got, expected, **CLOSE)

  state, outs = start(MIX, params, T), []
  for chunk in np.split(tokens, T // N, 1):
    out, state = call(MIX, params, chunk, state)
    outs.append(out)
  np.testing.assert_allclose(np.concatenate(outs, 1), expected, **CLOSE, err_msg="by chunks")

  stream, outs = bind(MIX, params).open(start(MIX, params, T), B), []
  for t in range(T):
    out, stream = more(MIX, params, tokens[:, t : t + 1], stream)
    outs.append(out)
  np.testing.assert_allclose(np.concatenate(outs, 1), expected, **CLOSE, err_msg="by tokens")


def test_a_window_counts_the_tokens_of_its_own_document(rng, mix):
  """With padding between two documents of a lane, and a document that continues a full cache."""
  params, tokens, _ = mix
  mask = np.ones((B, T), bool)
  mask[:, 5:N] = False
  reset = np.zeros((B, T // N), bool)
  reset[:, 1] = True

  def masked(params, tokens, state):
    model = bind(MIX, params)
    hidden, state = model(tokens, state, reset_BS=reset, mask_BT=mask)
    return model.logits(hidden), state

  state = call(MIX, params, draw(rng, B, N), start(MIX, params, 2 * T))[1]
  got = jax.jit(masked)(params, tokens, state)[0]
  np.testing.assert_allclose(got[:, N:], exact(params, tokens[:, N:], MIX), **CLOSE)


def test_the_gradient_of_all_features_equals_float64(mix):
  """The loss in chunks of capped logits, along one random direction of every parameter."""
  params, tokens, _ = mix
  tokens = tokens[:1, : 2 * N]  # one lane, longer than the window
  targets = array(tokens[:, 1:])

  def ours(params):
    model = bind(MIX, params)
    hidden, _ = model(tokens[:, :-1], model.state(1))
    how = {"chunk": 8, "softcap": MIX.family.logit_softcap}
    return cross_entropy(hidden, model.head(), targets, **how)[0].mean()

  value, grads = jax.jit(jax.value_and_grad(ours))(params)
  exact_params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  exact_loss = lambda p: reference.loss(p, tokens[0], MIX)
  np.testing.assert_allclose(value, exact_loss(exact_params), rtol=1e-5)

  rng, step = np.random.default_rng(), 1e-5
  leaves, tree = jax.tree.flatten(exact_params)
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for i, (path, grad) in enumerate(zip(paths, jax.tree.leaves(grads), strict=True)):
    direction = rng.standard_normal(leaves[i].shape)
    moved = lambda sign: tree.unflatten(
      [x + sign * step * direction if j == i else x for j, x in enumerate(leaves)]  # noqa: B023
    )
    expected = (exact_loss(moved(1)) - exact_loss(moved(-1))) / (2 * step)
    got = (np.asarray(grad, np.float64) * direction).sum()
    scale = np.linalg.norm(grad) * np.linalg.norm(direction)
    assert scale > 0, f"no gradient reaches {path}"
    assert abs(got - expected) < 1e-4 * scale, f"gradient of {path}: {got}, exactly {expected}"


@pytest.mark.parametrize("mixer", ["infini", "local"])
def test_with_shut_gates_a_segment_equals_the_original(mix, mixer):
  """A segment has the length of the window, so layers differ only in their wavelengths."""
  params, tokens, _ = mix
  c = changed(MIX, mixer=mixer, gate_init=-200.0)
  if mixer == "infini":
    gates = {"mixer": {"beta_H": jnp.full((c.layers, c.heads), -200.0)}}
    attention = {**params["blocks"]["attention"], **gates}
    params = {**params, "blocks": {**params["blocks"], "attention": attention}}
  tokens = tokens[:, : 2 * N]
  expected = np.concatenate([exact(params, tokens[:, s : s + N], MIX) for s in (0, N)], 1)
  got = call(c, params, tokens, start(c, params))[0]
  np.testing.assert_allclose(got, expected, **CLOSE)

  stream = bind(c, params).open(start(c, params), B)
  for t in range(2 * N):
    got, stream = more(c, params, tokens[:, t : t + 1], stream)
    np.testing.assert_allclose(got[:, 0], expected[:, t], **CLOSE, err_msg=f"streamed token {t}")


def test_features_that_are_off_have_no_parameters():
  """Biases and norms that are off are not parameters; those that are on start neutral."""
  more = changed(PLAIN, attention_bias=True, post_norms=True, norm_plus_one=True)
  make = lambda c: init(c, jax.random.key(0))
  named = lambda tree: {
    jax.tree_util.keystr(path, simple=True, separator="."): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  plain, all_on = (
    named(jax.eval_shape(lambda: make(PLAIN))),
    named(jax.jit(make, static_argnums=0)(more)),
  )
  added = {name.removeprefix("blocks."): x for name, x in all_on.items() if name not in plain}
  assert set(plain) < set(all_on) and set(added) == {
    *("attention.b_q_HE", "attention.b_k_KE", "attention.b_v_KE"),
    *("attention_post_norm.scale_E", "ffn_post_norm.scale_E"),
  }
  assert added["attention.b_q_HE"].shape == (2, 4, 8) and not any(x.any() for x in added.values())
  assert not all_on["final_norm.scale_E"].any() and all_on["embed_VD"].any()
