"""What the parameters of Infini-attention change, and what they do not change."""

import dataclasses

import jax
import numpy as np
import pytest

from infini_jax.models import bind, init
from tests.tiny import fake_params, model_config

N = 8


def hidden(config, params, tokens):
  model = bind(config, params)
  return np.asarray(model(tokens, model.state(len(tokens)))[0])


@pytest.mark.parametrize("implementation", ["scan", "parallel"])
def test_adapters_of_the_memory_change_nothing_within_a_segment(rng, implementation):
  """So an adapted model equals the original in the first segment, bit by bit."""
  plain = model_config(rule="delta", kv_heads=1, implementation=implementation)
  adapted = dataclasses.replace(
    plain, memory=dataclasses.replace(plain.memory, adapter_rank=2, write_gate=True)
  )
  params = fake_params(adapted)
  before = jax.tree.map(lambda x: x, params)
  for name in ("lora_q", "lora_k", "lora_v", "w_write_DK", "b_write_K"):
    before["blocks"]["attention"]["mixer"].pop(name)
  tokens = rng.integers(0, plain.vocab_size, (2, 2 * N))
  with_them, without = hidden(adapted, params, tokens), hidden(plain, before, tokens)
  np.testing.assert_array_equal(with_them[:, :N], without[:, :N])
  assert np.abs(with_them[:, N:] - without[:, N:]).max() > 1e-3, "the memory is read differently"


@pytest.mark.parametrize(
  "implementation,write_gate",
  [
    ("scan", True),
    ("parallel", False),
    pytest.param("scan", False, marks=pytest.mark.slow),
    pytest.param("parallel", True, marks=pytest.mark.slow),
  ],
)
def test_tokens_that_count_several_times_are_written_as_often(rng, implementation, write_gate):
  """In one layer the linear rule is a sum over tokens, so the memory is linear in the counts."""
  config = model_config(
    rule="linear", layers=1, write_gate=write_gate, implementation=implementation
  )
  params = fake_params(config)
  tokens = rng.integers(0, config.vocab_size, (2, 3 * N))

  def memory(times=None):
    model = bind(config, params)
    return model(tokens, model.state(2), times_BT=times)[1]

  one, other = (rng.uniform(0, 9, tokens.shape).astype(np.float32) for _ in range(2))
  both = jax.tree.map(lambda a, b: a + 2 * b, memory(one), memory(other))
  for got, expected in zip(memory(one + 2 * other), both, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
  for got, expected in zip(memory(np.ones_like(one)), memory(), strict=True):
    np.testing.assert_array_equal(got, expected)


def test_fresh_adapters_of_the_memory_change_nothing(rng):
  plain = model_config(gate_init=1.0)
  adapted = model_config(gate_init=1.0, adapter_rank=2)
  params = init(adapted, jax.random.key(0))
  before = jax.tree.map(lambda x: x, params)
  for name in ("lora_q", "lora_k", "lora_v"):
    before["blocks"]["attention"]["mixer"].pop(name)
  tokens = rng.integers(0, plain.vocab_size, (2, 3 * N))
  np.testing.assert_array_equal(hidden(adapted, params, tokens), hidden(plain, before, tokens))


def test_the_penalty_on_what_is_written_is_a_loss(rng):
  """In the first layer, the gradient is that of the mean of `hard_sigmoid(x w + b)`."""
  free = model_config(layers=1, kv_heads=1, write_gate=True)
  params = fake_params(free)
  params["blocks"]["attention"]["mixer"]["w_write_DK"] /= 8  # within the slope of most gates
  tokens = rng.integers(0, free.vocab_size, (2, 3 * N))
  penalty = 0.5

  def loss(params, config):
    model = bind(config, params)
    return (model(tokens, model.state(2))[0] ** 2).sum()

  def fraction(params):
    model, block = bind(free, params), jax.tree.map(lambda x: x[0], params["blocks"])
    x_BTD = model.embed(tokens)
    x_BTD *= jax.lax.rsqrt((x_BTD**2).mean(-1, keepdims=True) + free.family.norm_eps)
    x_BTD *= block["attention_norm"]["scale_E"][None, None]
    own = block["attention"]["mixer"]
    return jax.nn.hard_sigmoid(x_BTD @ own["w_write_DK"] + own["b_write_K"][None, None]).mean()

  assert 0.05 < fraction(params) < 0.95, "a weak test"
  limited = dataclasses.replace(
    free, memory=dataclasses.replace(free.memory, write_penalty=penalty)
  )
  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  before, after = (gradient(params, config) for config in (free, limited))
  np.testing.assert_allclose(after[0], before[0], rtol=1e-6, err_msg="the loss does not change")
  own = jax.jit(jax.grad(fraction))(params)
  assert np.abs(own["blocks"]["attention"]["mixer"]["w_write_DK"]).max() > 1e-3, "a weak test"
  expected = jax.tree.map(lambda x, y: x + penalty * y, before[1], own)
  for got, want in zip(jax.tree.leaves(after[1]), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
