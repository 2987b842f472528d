"""Adapters change nothing at first. A model with merged adapters equals the adapted model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from infini_jax.models import abstract_params, bind, completed, init, merged
from infini_jax.parallel import make_mesh
from infini_jax.parallel.mesh import AXES
from tests.tiny import array, changed, config, fake_params, model_config

B, N, S = 2, 8, 3
ADAPTED = model_config(kv_heads=1, lora_rank=3, lora_alpha=5.0, qk_norm=True, attention_bias=True)


def logits(model, params, tokens):
  return np.asarray(_logits(model, params, tokens))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens):
  bound = bind(model, params)
  hidden, _ = bound(tokens, bound.state(len(tokens)))
  return bound.logits(hidden)


@pytest.fixture(scope="module")
def original():
  model = changed(ADAPTED, lora_rank=0)
  return model, fake_params(model)


def test_fresh_adapters_change_nothing_and_merged_ones_nothing_more(rng, original):
  model, params = original
  tokens = rng.integers(0, model.vocab_size, (B, N * S)).astype(np.int32)
  mesh = make_mesh(config(mesh={"data": 1}).mesh, jax.devices()[:1])
  adapted = completed(ADAPTED, params, jax.random.key(int(rng.integers(1000))), mesh)
  adapted = jax.tree.map(jnp.asarray, jax.device_get(adapted))  # without a mesh
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(adapted) == shapes(jax.eval_shape(lambda: init(ADAPTED, jax.random.key(0))))
  expected = logits(model, params, tokens)
  np.testing.assert_array_equal(logits(ADAPTED, adapted, tokens), expected)

  for name, adapter in adapted["blocks"]["attention"].items():
    if name.startswith("lora_"):
      (up,) = (key for key in adapter if key.startswith("up_"))
      assert np.any(adapter[{"lora_o": "down_HER"}.get(name, "down_DR")])
      adapter[up] = array(0.3 * rng.standard_normal(adapter[up].shape), jnp.float32)
  got = logits(ADAPTED, adapted, tokens)
  assert np.abs(got - expected).max() > 0.1, "the adapters do nothing"
  whole, into = merged(ADAPTED, adapted)
  assert whole == model and shapes(into) == shapes(params)
  np.testing.assert_allclose(logits(whole, into, tokens), got, rtol=1e-4, atol=1e-4)
  assert merged(model, params) == (model, params)


def test_adapters_are_divided_as_the_weights_beside_them():
  mesh = AbstractMesh((1, 1, 2, 1, 2), AXES, axis_types=(AxisType.Explicit,) * len(AXES))
  c = dataclasses.replace(ADAPTED, heads=4, kv_heads=2)
  with jax.sharding.use_abstract_mesh(mesh):
    attention = abstract_params(c, mesh)["blocks"]["attention"]
    spec = lambda adapter, name: attention[adapter][name].sharding.spec
    assert spec("lora_q", "down_DR") == P(None, ("fsdp", "seq"), None)
    assert spec("lora_q", "up_RHE") == P(None, None, "tensor", None)
    assert spec("lora_v", "up_RKE") == P(None, None, "tensor", None)
    assert spec("lora_o", "down_HER") == P(None, "tensor", None, None)
    assert spec("lora_o", "up_RD") == P(None, None, ("fsdp", "seq"))
    run = lambda params, tokens: bind(c, params)(tokens, bind(c, params).state(4))[0]
    tokens = jax.ShapeDtypeStruct((4, N * S), jnp.int32)
    hidden = jax.eval_shape(run, abstract_params(c, mesh), tokens)
  assert hidden.shape == (4, N * S, c.width)
