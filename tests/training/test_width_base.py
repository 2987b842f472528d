"""muP (`model.width_base`): what moves in a step does not depend on the width."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from infini_jax.models import bind, init, param_shapes
from infini_jax.models.mixers.base import Chunk
from infini_jax.training.optimizer import HIDDEN, make_optimizer, make_schedule
from infini_jax.training.step import TrainState, make_train_step
from tests import tiny
from tests.tiny import array, config, systems

BASE = 16
EVERY = {**tiny.SYSTEMS, "infini": {"mixer": "infini", "rule": "delta", "write_gate": True}}
EVERY["infini"]["adapter_rank"] = 2


def of_width(width, base, **model):
  """A model whose heads and feed-forward grow with its width."""
  sizes = {"width": width, "heads": width // 8, "kv_heads": width // 8, "ffn": 2 * width}
  return config(
    model={**sizes, "head_dim": 8, "vocab_size": 64, "width_base": base, **model},
    optimizer={"learning_rate": 0.01, "warmup_steps": 0},
    data={"lanes": 4, "carry_state": False},
    train={"steps": 100},
    mesh={"data": 1},
  )


def batch(rng):
  tokens = rng.integers(0, 64, (4, 33)).astype(np.int32)
  rows = {
    "tokens_BT": tokens[:, :-1],
    "targets_BT": tokens[:, 1:],
    "mask_BT": np.ones((4, 32), bool),
    "reset_BS": np.array([[True, False]] * 4),
  }
  return jax.tree.map(jnp.asarray, rows)


def moved(c, rows, key):
  """How far the output of the first layer moves in one step, root mean square."""
  tx = make_optimizer(c)

  def output(params):
    model = bind(c.model, params)
    graph, stacked = nnx.split(model.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda x: x[0], stacked))
    return block(model.embed(rows["tokens_BT"]), (), Chunk())[0]

  def loss(params):
    model = bind(c.model, params)
    logits_BTV = model.logits(model(rows["tokens_BT"], model.state(4))[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, rows["targets_BT"]).mean()

  @jax.jit
  def change(key):
    params = init(c.model, key)
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    return output(optax.apply_updates(params, updates)) - output(params)

  return float(jnp.sqrt(jnp.mean(change(key) ** 2)))


@pytest.mark.slow
def test_a_step_moves_a_wide_layer_as_far_as_a_narrow_one(rng):
  """The coordinate check in small; benchmarks/widths.py has the large one, with the memory."""
  rows, key = batch(rng), jax.random.key(int(rng.integers(2**31)))
  narrow, wide = (
    moved(of_width(width, BASE, layers=1, mixer="local"), rows, key) for width in (BASE, 8 * BASE)
  )
  assert 0.4 < wide / narrow < 1.6, "without muP it is 3 to 5"


def test_at_the_base_the_programs_are_the_same():
  """Also with no base: all bits of a run are those of a version without it."""

  def programs(base):
    c = of_width(BASE, base)
    tx = make_optimizer(c)
    params = param_shapes(c.model)
    state = TrainState(
      jnp.zeros((), jnp.int32), params, jax.eval_shape(tx.init, params), None, None
    )
    rows = batch(np.random.default_rng(0))
    start = jax.make_jaxpr(lambda key: init(c.model, key))(jax.random.key(0))
    return [
      re.sub("0x[0-9a-f]+", "", str(p))
      for p in (start, jax.make_jaxpr(make_train_step(c, tx))(state, rows))
    ]

  assert programs(0) == programs(BASE)


@pytest.mark.parametrize("mixer", ["infini", *systems("gated_delta", "memorizing", "rmt")])
def test_each_parameter_has_the_rate_of_its_kind(mixer):
  """The rule is by names: matrices whose products sum over what grows with the width."""
  model, updates = {**EVERY[mixer], "tied_embeddings": False, "lora_rank": 2}, {}
  for base in (0, BASE):
    c = of_width(4 * BASE, base, **model)
    shapes = param_shapes(c.model)
    params = jax.tree.map(lambda x: jnp.full((1,) * x.ndim, 0.5), shapes)  # no size matters
    tx = make_optimizer(c)
    updates[base], _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  rate = float(make_schedule(c, 0.01)(0))

  def one(path, param, plain, scaled):
    name, letters = path[-1].key, path[-1].key.rpartition("_")[2]
    hidden = name.startswith(HIDDEN)
    grows = not name.startswith("up_") and bool(set(letters[:-1]) & set("DHF"))
    assert hidden == (grows and not name.startswith("b_")), name
    if hidden:  # the step is a quarter, and what decays is the same
      decay = rate * c.optimizer.weight_decay * param
      np.testing.assert_allclose(scaled, (plain + decay) / 4 - decay, rtol=1e-4, atol=1e-8)
    else:
      np.testing.assert_array_equal(scaled, plain)

  jax.tree_util.tree_map_with_path(one, params, updates[0], updates[BASE])


def test_embeddings_start_with_the_size_of_the_base():
  plain, scaled = (
    jax.jit(lambda key, c=c: init(c.model, key))(jax.random.key(3))
    for c in (of_width(4 * BASE, base, tied_embeddings=False) for base in (0, BASE))
  )
  for name in ("embed_VD", "head_VD"):
    np.testing.assert_allclose(scaled.pop(name), 2 * plain.pop(name), rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, plain, scaled)


@pytest.mark.parametrize("mixer", ["infini", *systems()])
def test_logits_have_one_factor_in_every_call(rng, mixer):
  """A chunk and an extension of an open segment both give the logits of muP: base / width."""
  c = of_width(4 * BASE, BASE, **EVERY[mixer]).model
  plain = dataclasses.replace(c, width_base=0)
  params = tiny.fake_params(c)
  tokens = array(rng.integers(0, 64, (2, 8)), jnp.int32)
  mask = jnp.ones((2, 8), bool)
  found = []
  for model in (bind(c, params), bind(plain, params)):
    chunk = model.logits(model(tokens, model.state(2), mask_BT=mask)[0])
    stream = model.open(model.state(2), 2)
    extended = model.logits(model.extend(tokens, stream, mask)[0])
    np.testing.assert_allclose(chunk, extended, rtol=1e-3, atol=1e-4)
    found.append(chunk)
  np.testing.assert_allclose(found[0] * 4, found[1], rtol=1e-5, atol=1e-6)
