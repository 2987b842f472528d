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


def test_fresh_adapters_of_the_memory_change_nothing(rng):
  plain = model_config(gate_init=1.0)
  adapted = model_config(gate_init=1.0, adapter_rank=2)
  params = init(adapted, jax.random.key(0))
  before = jax.tree.map(lambda x: x, params)
  for name in ("lora_q", "lora_k", "lora_v"):
    before["blocks"]["attention"]["mixer"].pop(name)
  tokens = rng.integers(0, plain.vocab_size, (2, 3 * N))
  np.testing.assert_array_equal(hidden(adapted, params, tokens), hidden(plain, before, tokens))
