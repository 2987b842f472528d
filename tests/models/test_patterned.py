"""Layers with several memory systems: equal to a plain loop over layers, however tokens are cut."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infini_jax.models import bind
from infini_jax.models.mixers.base import Chunk
from infini_jax.models.patterned import by_layer
from infini_jax.models.states import reserve
from infini_jax.models.transformer import Block
from tests.tiny import array, fake_params, model_config, patterned

B, N, T = 2, 8, 32
CLOSE = dict(rtol=1e-4, atol=1e-5)
CASES = {
  "infini-full": patterned(
    ("infini", "infini", "full"), 6, infini={"rule": "delta", "write_gate": True}
  ),
  "infini-local": patterned(("infini", "local"), 4),
  "compressed": patterned(
    ("gated_delta", "full", "compressive", "transformer_xl"),
    4,
    compressive={"compression_rate": 4, "compressed_memory": 6},
  ),
}


def loop(config, params, tokens, state, reset, mask, cut=None, empty=None):
  """One layer after the other, each with its own slice of the parameters and of the state."""
  model, take = bind(config, params), lambda tree, i: jax.tree.map(lambda x: x[i], tree)
  after = {name: [] for name in config.pattern}
  x = model.embed(tokens)
  for layer in range(config.layers):
    name = config.pattern[layer % len(config.pattern)]
    attention = dict(params["blocks"]["attention"])
    mixers, i = attention.pop("mixer", {}), len(after[name])
    block = take({**params["blocks"], "attention": attention}, layer)
    if name in mixers:
      block["attention"]["mixer"] = take(mixers[name], i)
    graph, _ = nnx.split(nnx.eval_shape(lambda own=config.by_system[name]: Block(own, nnx.Rngs(0))))
    own = reset if empty is None else reset | empty[layer]
    chunk = Chunk(own, mask, cut=None if cut is None else array(cut[layer]))
    x, part = nnx.merge(graph, block)(x, take(state[name], i), chunk)
    after[name].append(part)
  stack = lambda parts: jax.tree.map(lambda *x: jnp.stack(x), *parts)
  return model.logits(model.final_norm(x)), {name: stack(parts) for name, parts in after.items()}


class Model:
  """A config with random parameters, its calls jitted once."""

  def __init__(self, config):
    self.config, self.params = config, fake_params(config)
    self._read = jax.jit(lambda p, *args: self._call(p, *args))
    self._extend = jax.jit(self._extend_)
    self.loop = jax.jit(lambda *args: loop(config, *args))

  def _call(self, params, tokens, state, reset, mask, cut, empty):
    model = bind(self.config, params)
    flags = {"cut_L": cut, "empty_L": empty}
    hidden, state = model(tokens, state, reset_BS=reset, mask_BT=mask, **flags)
    return model.logits(hidden), state

  def _extend_(self, params, tokens, stream, mask, layers=None):
    model = bind(self.config, params)
    hidden, stream = model.extend(tokens, stream, mask, layers)
    return model.logits(hidden), stream

  def state(self):
    return bind(self.config, self.params).state(B)

  def __call__(self, tokens, state=None, reset=None, mask=None, cut=None, empty=None, params=None):
    state = self.state() if state is None else state
    reset = np.zeros((B, tokens.shape[1] // N), bool) if reset is None else reset
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return self._read(params or self.params, tokens, state, reset, mask, cut, empty)


@pytest.fixture(
  scope="module",
  params=[
    "infini-full",
    *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "infini-full"),
  ],
)
def model(request):
  return Model(CASES[request.param])


def draw(rng):
  tokens = rng.integers(0, 32, (B, T)).astype(np.int32)
  return jnp.array(tokens), jnp.array(rng.random((B, T // N)) < 0.3), jnp.ones((B, T), bool)


def close(got, want, **tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **(tolerance or CLOSE))


def test_the_scan_is_a_plain_loop_over_layers(rng, model):
  tokens, reset, mask = draw(rng)
  plain = model.loop(model.params, tokens, model.state(), reset, mask)
  close(model(tokens, None, reset, mask), plain)


@pytest.mark.slow
def test_its_gradient_is_that_of_the_loop(rng, model):
  tokens, reset, mask = draw(rng)
  weights = rng.standard_normal((B, T, 32)).astype(np.float32)
  state = model.state()
  ours = lambda p: (model._call(p, tokens, state, reset, mask, None, None)[0] * weights).mean()
  theirs = lambda p: (loop(model.config, p, tokens, state, reset, mask)[0] * weights).mean()
  close(*(jax.jit(jax.grad(f))(model.params) for f in (ours, theirs)), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_cut_and_empty_act_on_single_layers(rng, model):
  tokens, reset, mask = draw(rng)
  for which in ("cut", "empty"):
    flags = rng.random(model.config.layers) < 0.5
    got = model(tokens, None, reset, mask, **{which: flags})
    more = (flags, None) if which == "cut" else (None, flags)
    close(got, model.loop(model.params, tokens, model.state(), reset, mask, *more))


@pytest.mark.slow
def test_chunk_after_chunk_is_the_whole(rng, model):
  tokens, reset, _ = draw(rng)
  whole, _ = model(tokens, None, reset)
  state, parts = model.state(), []
  for s in range(T // N):
    at = slice(s * N, (s + 1) * N)
    state = reserve(model.config, state, N)
    logits, state = model(tokens[:, at], state, reset[:, s : s + 1])
    parts.append(logits)
  close(np.concatenate(parts, 1), whole)


def test_token_by_token_is_the_whole_also_by_separate_layers(rng, model):
  tokens, _, _ = draw(rng)
  whole = model(tokens)[0]
  bound = bind(model.config, model.params)
  layers = by_layer(model.config, model.params["blocks"])
  stream, apart = bound.open(model.state(), B), None
  stream, one = reserve(model.config, stream, T), np.ones((B, 1), bool)
  apart = bound.apart(stream)
  for t in range(2 * N + 3):
    logits, stream = model._extend(model.params, tokens[:, t : t + 1], stream, one)
    close(logits[:, 0], whole[:, t])
    if t < N + 1:
      logits, apart = model._extend(model.params, tokens[:, t : t + 1], apart, one, layers)
      close(logits[:, 0], whole[:, t])
      if t == N:
        close(bound.together(apart), stream)


@pytest.mark.slow
def test_reading_without_logits_leaves_the_same_state(rng, model):
  tokens, reset, mask = draw(rng)
  bound = bind(model.config, model.params)
  how = {"reset_BS": reset, "mask_BT": mask}
  close(bound(tokens, model.state(), state_only=True, **how)[1], model(tokens, None, reset)[1])


@pytest.mark.slow
def test_remat_changes_no_gradient(rng):
  tokens, reset, mask = draw(rng)
  grads = []
  for remat in ("none", "full"):
    case = CASES["infini-full"]
    config = dataclasses.replace(case, run=dataclasses.replace(case.run, remat=remat))
    case = Model(config)
    loss = lambda p, case=case: (
      case._call(p, tokens, case.state(), reset, mask, None, None)[0] ** 2
    ).mean()
    grads.append(jax.jit(jax.grad(loss))(case.params))
  close(*grads)


def test_the_first_layers_of_a_system_have_its_first_parameters():
  model = CASES["infini-full"]
  params = fake_params(model)
  betas = params["blocks"]["attention"]["mixer"]["infini"]["beta_H"]
  found = by_layer(model, params["blocks"])
  own = [layer["attention"].get("mixer") for layer in found]
  assert [layer is not None for layer in own] == [True, True, False] * 2
  np.testing.assert_array_equal([x["beta_H"] for x in own if x], betas)


def test_a_pattern_of_one_system_computes_what_the_system_does(rng):
  alone = model_config(layers=4)
  tokens, reset, mask = draw(rng)
  params = fake_params(alone)
  attention = dict(params["blocks"]["attention"])
  attention["mixer"] = {"infini": attention["mixer"]}
  same = {**params, "blocks": {**params["blocks"], "attention": attention}}
  both = patterned(("infini", "infini"), 4)

  @partial(jax.jit, static_argnums=0)
  def logits(config, params, tokens, reset, mask):
    bound = bind(config, params)
    hidden, _ = bound(tokens, bound.state(B), reset_BS=reset, mask_BT=mask)
    return bound.logits(hidden)

  arrays = tokens, reset, mask
  close(logits(alone, params, *arrays), logits(both, same, *arrays))
