"""The model as a function over segments: logits do not depend on how tokens are cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import resolve
from infini_jax.models import bind, init, param_shapes
from infini_jax.models.mixers import MIXERS
from infini_jax.ops.loss import cross_entropy
from tests.tiny import array, changed, fake_params, model_config

B, N, T = 2, 8, 32
CASES = {
  "infini-linear": model_config(),
  "infini-delta": model_config(rule="delta", kv_heads=1),
  "infini-refined": model_config(
    rule="delta", normalize_keys=True, z_correction=True, decay=0.7, gate="hard_sigmoid",
    readout_norm=True,
  ),
  "infini-written": model_config(rule="delta", kv_heads=1, write_gate=True, adapter_rank=2),
  "gated_delta": model_config(mixer="gated_delta", kv_heads=1),
  "local": model_config(mixer="local"),
  "full": model_config(mixer="full", kv_heads=1),
  "transformer_xl": model_config(mixer="transformer_xl"),
  "compressive": model_config(mixer="compressive", compression_rate=4, compressed_memory=6),
  "pooled": model_config(
    mixer="compressive", compression="mean", compression_rate=2, compressed_memory=4
  ),
  "rmt": model_config(mixer="rmt", summary_tokens=3),
  "autocompressor": model_config(mixer="autocompressor", summary_tokens=2, summary_steps=2),
  "memorizing": model_config(mixer="memorizing", knn_layers=(2,), knn_memory=40, knn_top=40),
}  # fmt: skip
CLOSE = dict(rtol=1e-4, atol=1e-5)


class Model:
  """A config with its parameters and its three calls, each jitted once for all tests."""

  def __init__(self, config):
    self.config = config
    self.params = fake_params(config)
    self._call = jax.jit(self._call_)
    self._extend = jax.jit(self._extend_)

  def _call_(self, params, tokens, state, reset, mask, cut):
    model = bind(self.config, params)
    hidden, state = model(tokens, state, reset_BS=reset, mask_BT=mask, cut_L=cut)
    return model.logits(hidden), state

  def _extend_(self, params, tokens, stream, mask):
    model = bind(self.config, params)
    hidden, stream = model.extend(tokens, stream, mask)
    return model.logits(hidden), stream

  def state(self, lanes=B):
    return bind(self.config, self.params).state(lanes)

  def reserve(self, state, tokens):
    return MIXERS[self.config.mixer].reserve(state, tokens)

  def __call__(self, tokens, state=None, reset=None, mask=None, params=None, cut=None):
    state = self.state(tokens.shape[0]) if state is None else state
    reset = np.zeros((tokens.shape[0], -(-tokens.shape[1] // N)), bool) if reset is None else reset
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return self._call(params or self.params, tokens, state, reset, mask, cut)

  def logits(self, *args, **kwargs):
    return np.asarray(self(*args, **kwargs)[0])

  def extend(self, tokens, stream, mask=None):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return self._extend(self.params, tokens, self.reserve(stream, tokens.shape[1]), mask)


@functools.cache
def model_of(config):
  """The model of a config. Tests share its programs."""
  return Model(config)


# Fast tests have one system for each kind of state. The systems also have their own tests.
FAST = ("infini-delta", "local", "full", "transformer_xl", "compressive", "rmt", "memorizing")


@pytest.fixture(
  scope="module",
  params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in CASES],
)
def model(request):
  return model_of(CASES[request.param])


@pytest.fixture(scope="module")
def infini():
  return model_of(CASES["infini-delta"])


def draw(rng, *shape):
  return rng.integers(0, 32, shape or (B, T)).astype(np.int32)


def test_no_logit_depends_on_a_later_token(rng, model):
  tokens = draw(rng)
  before = model.logits(tokens)
  reach = {"local": N, "transformer_xl": 3 * N}.get(model.config.mixer, T)  # N more for each layer
  for t in (0, 5, N - 1, N, 2 * N + 3, T - 1):
    other = tokens.copy()
    other[:, t] = (other[:, t] + 1) % 32
    after = model.logits(other)
    np.testing.assert_array_equal(
      after[:, :t], before[:, :t], err_msg=f"a logit before token {t} sees it: check the masks"
    )
    stop = min((t // N) * N + reach, T)
    differs = np.abs(after - before)[:, t:].max((0, 2)) > 0
    assert differs[: stop - t].all(), f"some token in {t}..{stop - 1} does not see token {t}"
    assert not differs[stop - t :].any(), f"a token from {stop} on sees {t}, beyond its segment"


def test_two_documents_in_a_lane_equal_each_alone(rng, model):
  tokens = draw(rng)
  reset = np.zeros((B, 4), bool)
  reset[:, [0, 2]] = True
  both, state = model(tokens, reset=reset)
  for part in (slice(0, 16), slice(16, 32)):
    alone, last = model(tokens[:, part])
    np.testing.assert_allclose(both[:, part], alone, **CLOSE)
  if model.config.mixer == "infini":
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state, last)


def test_one_call_equals_two_with_the_state_carried(rng, model):
  tokens = draw(rng)
  reset = np.zeros((B, 4), bool)
  reset[0, 1] = reset[1, 3] = True  # a document that began in either call
  whole = model.logits(tokens, reset=reset)
  state = model.reserve(model.state(), 16)
  first, state = model(tokens[:, :16], state, reset[:, :2])
  second, _ = model(tokens[:, 16:], model.reserve(state, 16), reset[:, 2:])
  np.testing.assert_allclose(np.concatenate([first, second], 1), whole, **CLOSE)


def test_the_state_alone_is_that_of_the_whole_call(rng, model):
  tokens, start = draw(rng), model.reserve(model.state(), T)
  wanted = model(tokens, start)[1]
  read = jax.jit(lambda p, t, s: bind(model.config, p)(t, s, state_only=True)[1])
  for want, have in zip(
    jax.tree.leaves(wanted), jax.tree.leaves(read(model.params, tokens, start)), strict=True
  ):
    np.testing.assert_allclose(have, want, **CLOSE)


@pytest.mark.parametrize("pattern", [(), ("infini", "local")])
def test_reading_copies_no_weights(pattern):
  """A copy of all layers would double the memory of the weights at every chunk that is read."""
  sizes = {"layers": 8, "width": 128, "heads": 2, "kv_heads": 2, "head_dim": 64, "ffn": 256}
  model = {"vocab_size": 8, "segment_length": 4, "pattern": pattern, **sizes}
  config = resolve({"model": model}).model
  params = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
  start = jax.eval_shape(lambda p: bind(config, p).state(1), params)
  tokens = jax.ShapeDtypeStruct((1, 8), np.int32)
  read = jax.jit(lambda p, t, s: bind(config, p)(t, s, state_only=True)[1])
  needed = read.lower(params, tokens, start).compile().memory_analysis().temp_size_in_bytes
  weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["blocks"]))
  assert needed < weights / 2, f"{needed:,} bytes beside {weights:,} of weights"


@pytest.mark.parametrize("pieces", [pytest.param([1] * 12, marks=pytest.mark.slow), [3, 5, 1, 7]])
def test_streaming_equals_the_whole_call_at_every_position(rng, model, pieces):
  tokens = draw(rng)
  whole = model.logits(tokens)
  # Two segments are read as a chunk; the rest is read a few tokens at a time, padded to one shape.
  state = model(tokens[:, : 2 * N], model.reserve(model.state(), 2 * N))[1]
  stream = bind(model.config, model.params).open(state, B)
  start = 2 * N
  for piece in pieces:
    padded, mask = np.zeros((B, N), np.int32), np.zeros((B, N), bool)
    padded[:, :piece], mask[:, :piece] = tokens[:, start : start + piece], True
    if piece == 1:
      padded, mask = padded[:, :1], mask[:, :1]
    got, stream = model.extend(padded, stream, mask)
    stop = start + piece
    np.testing.assert_allclose(
      got[:, :piece], whole[:, start:stop], err_msg=f"streamed tokens {start}..{stop - 1}", **CLOSE
    )
    start = stop


def test_lanes_may_stream_at_different_places(rng, model):
  tokens = draw(rng)
  whole = model.logits(tokens)
  stream = bind(model.config, model.params).open(model.state(), B)
  done = [0, 0]
  for pieces in ([8, 3], [2, 5], [6, 4], [8, 4], [8, 8]):
    padded, mask = np.zeros((B, N), np.int32), np.zeros((B, N), bool)
    for b, piece in enumerate(pieces):
      padded[b, :piece], mask[b, :piece] = tokens[b, done[b] : done[b] + piece], True
    got, stream = model.extend(padded, stream, mask)
    for b, piece in enumerate(pieces):
      np.testing.assert_allclose(got[b, :piece], whole[b, done[b] : done[b] + piece], **CLOSE)
      done[b] += piece


def test_padding_at_the_end_of_a_document_changes_nothing(rng, model):
  tokens, end = draw(rng), 13
  reset = np.zeros((B, 4), bool)
  reset[:, [0, 2]] = True
  mask = np.ones((B, T), bool)
  mask[:, end:16] = False
  got = [model(np.where(mask, tokens, fill), reset=reset, mask=mask) for fill in (0, 7)]
  whole = model.logits(tokens, reset=reset)
  for logits, _ in got:
    np.testing.assert_allclose(logits[:, :end], whole[:, :end], **CLOSE)
    np.testing.assert_allclose(logits[:, 16:], whole[:, 16:], **CLOSE)
  jax.tree.map(np.testing.assert_array_equal, got[0][1], got[1][1])


def test_padding_is_not_remembered(rng, infini):
  tokens = draw(rng)
  mask = np.ones((B, T), bool)
  mask[:, 29:] = False
  state = infini(tokens, mask=mask)[1]
  alone = infini(tokens[:, :29])[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state, alone)


def without_gates(params):
  attention = {k: v for k, v in params["blocks"]["attention"].items() if k != "mixer"}
  return {**params, "blocks": {**params["blocks"], "attention": attention}}


def test_memory_held_empty_or_gated_off_is_the_local_model(rng, infini):
  tokens = draw(rng)
  local = model_of(changed(infini.config, mixer="local"))
  expected = local.logits(tokens, params=without_gates(infini.params))
  knocked = infini.logits(tokens, reset=np.ones((B, 4), bool))
  np.testing.assert_allclose(knocked, expected, **CLOSE)
  assert np.abs(infini.logits(tokens) - expected)[:, N:].max() > 1e-3, "the memory does nothing"

  shut = jax.tree.map(lambda x: x, infini.params)
  shut["blocks"]["attention"]["mixer"]["beta_H"] = jnp.full((2, 2), -200.0)
  np.testing.assert_allclose(infini.logits(tokens, params=shut), expected, rtol=1e-6, atol=1e-6)


def test_cutting_no_layer_changes_nothing_and_cutting_all_does(rng, model):
  tokens = draw(rng)
  logits, state = model(tokens)
  none, same = model(tokens, cut=np.zeros(2, bool))
  np.testing.assert_array_equal(none, logits)
  jax.tree.map(np.testing.assert_array_equal, same, state)
  cut = model.logits(tokens, cut=np.ones(2, bool))
  if model.config.mixer == "local":
    np.testing.assert_array_equal(cut, logits, err_msg="local attention has no memory to cut")
  else:
    np.testing.assert_allclose(cut[:, :N], logits[:, :N], **CLOSE)
    assert np.abs(cut - logits)[:, N:].max() > 1e-3, "cut or not, the logits are the same"


def test_full_attention_cut_in_all_layers_is_local(rng):
  tokens = draw(rng)
  full = model_of(CASES["full"])
  expected = model_of(changed(full.config, mixer="local")).logits(tokens, params=full.params)
  np.testing.assert_allclose(full.logits(tokens, cut=np.ones(2, bool)), expected, **CLOSE)


def test_cutting_a_layer_acts_through_that_layer_alone(rng, infini):
  tokens = draw(rng)
  logits, state = infini(tokens)
  cut, cut_state = infini(tokens, cut=np.array([False, True]))
  jax.tree.map(np.testing.assert_array_equal, cut_state, state)  # its reads change no memory
  assert np.abs(cut - logits)[:, N:].max() > 1e-3
  _, cut_state = infini(tokens, cut=np.array([True, False]))
  first, second = (np.abs(cut_state.M_BKEU - state.M_BKEU)[layer].max() for layer in (0, 1))
  assert first == 0 and second > 0, "a layer's reads reach the layers above, and not itself"

  shut = jax.tree.map(lambda x: x, infini.params)
  shut["blocks"]["attention"]["mixer"]["beta_H"] = jnp.array([[-200.0] * 2, [0.0] * 2])
  np.testing.assert_array_equal(
    infini.logits(tokens, params=shut, cut=np.array([True, False])),
    infini.logits(tokens, params=shut),
    err_msg="a layer whose gates are shut reads nothing that could be cut",
  )


def gradient(config, params, tokens):
  def loss(params):
    model = bind(config, params)
    hidden, _ = model(tokens[:, :-1], model.state(B))
    return cross_entropy(hidden, model.head(), tokens[:, 1:], chunk=16)[0].mean()

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def plain_gradient(infini):
  tokens = array(draw(np.random.default_rng(0), B, T + 1))
  return tokens, gradient(infini.config, infini.params, tokens)


@pytest.mark.parametrize(
  "fields",
  [
    {"remat": "dots"},
    pytest.param({"remat": "full"}, marks=pytest.mark.slow),
    pytest.param({"remat": "offload"}, marks=pytest.mark.slow),
    {"implementation": "scan"},
    pytest.param({"implementation": "parallel"}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_how_it_is_run_does_not_change_loss_or_gradient(infini, plain_gradient, fields):
  tokens, expected = plain_gradient
  got = gradient(changed(infini.config, **fields), infini.params, tokens)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got[1], expected[1])


def test_bfloat16_keeps_the_memory_in_float32_and_stays_near(rng, infini):
  tokens = draw(rng)
  half = Model(changed(infini.config, compute_dtype="bfloat16"))
  logits, state = half(tokens, params=infini.params)
  assert logits.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
  expected = infini.logits(tokens)
  assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
  "fields",
  [
    {"qk_norm": True},
    {"activation": "gelu"},
    {"tied_embeddings": False},
    {"scale_first_segment": True},
    {"rope_theta": 10.0},
    {"norm_eps": 0.1},
    {"rule": "linear"},
    {"gate": "hard_sigmoid"},
    {"normalize_keys": True},
    {"z_correction": True},
    {"decay": 0.5},
    {"readout_norm": True},
  ],
  ids=str,
)
def test_each_choice_runs_and_changes_the_output(rng, infini, fields):
  tokens = draw(rng)
  config = changed(infini.config, **fields)

  got = Model(config).logits(tokens)
  assert np.isfinite(got).all()
  assert np.abs(got - infini.logits(tokens)).max() > 1e-5, f"{fields} changes nothing"


def test_the_shapes_of_parameters_are_those_that_are_made_and_the_callers_own():
  config = CASES["infini-delta"]
  made = jax.eval_shape(lambda: init(config, jax.random.key(0)))
  like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert like(param_shapes(config)) == like(made)
  param_shapes(config)["blocks"].clear()
  assert like(param_shapes(config)) == like(made), "a caller changed the shapes of all others"


def test_fresh_parameters():
  """Predictions are nearly uniform, gates have their initial value, and layers differ."""
  config = model_config(gate_init=-5.0, param_dtype="bfloat16", layers=3)
  params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
  attention = params["blocks"]["attention"]
  np.testing.assert_array_equal(attention["mixer"]["beta_H"], np.full((3, 2), -5.0, np.float32))
  types = {str(x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(params)
           if path[-1].key != "beta_H"}  # fmt: skip
  assert types == {"bfloat16"} and attention["mixer"]["beta_H"].dtype == jnp.float32
  w_LDHE = attention["w_q_DHE"].astype(jnp.float32)
  assert not np.any(w_LDHE[0] == w_LDHE[1]), "two layers start alike"
  assert abs(float(w_LDHE.std()) * 16**0.5 - 1) < 0.15
  model = Model(config)
  logits = jax.nn.log_softmax(model.logits(np.arange(T, dtype=np.int32)[None], params=params))
  assert abs(-logits.mean() - np.log(32)) < 1.0, "the first loss is far from a uniform guess"
