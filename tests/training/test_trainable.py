"""Training of a part: the rest has no gradient and no moments, and does not change in any bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import first_state, make_train_step
from infini_jax.training.trainable import join, split
from tests.tiny import changed, config, fake_params

B, S, N = 2, 2, 8
PARTS = {
  "gates": {"beta_H"},
  "attention": {"beta_H", "w_q_DHE", "w_k_DKE", "w_v_DKE", "w_o_HED"},
  "lora": {"beta_H", "down_DR", "down_HER", "up_RHE", "up_RKE", "up_RD"},
}


def experiment(part, **optimizer):
  model = {"layers": 1, "segment_length": N, "vocab_size": 32, "lora_rank": 2 * (part == "lora")}
  return config(
    model=model, data={"lanes": B, "segments": S}, train={"part": part}, optimizer=optimizer
  )


def batch(rng):
  tokens = rng.integers(0, 32, (B, S * N + 1)).astype(np.int32)
  return {
    "tokens_BT": tokens[:, :-1],
    "targets_BT": tokens[:, 1:],
    "mask_BT": np.ones((B, S * N), bool),
    "reset_BS": np.tile([True, False], (B, 1)),
  }


def names(tree):
  return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def numbers(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


# The run of the fixture `adapted` trains `attention`, from an original to its end.
@pytest.mark.parametrize(
  "part", [pytest.param(p, marks=[pytest.mark.slow] * (p != "lora")) for p in PARTS]
)
def test_what_is_frozen_stays_bit_by_bit_and_costs_nothing(rng, part):
  c = experiment(part)
  params, tx = fake_params(c.model), make_optimizer(c)
  state = first_state(c, tx, params)
  trained, frozen = split(c, params)
  assert names(trained) == PARTS[part] and numbers(frozen) > numbers(trained)
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert moments == 2 * numbers(trained), "moments are held for what is frozen"
  update = jax.jit(make_train_step(c, tx))
  for _ in range(2):  # `up` is 0 at first, so `down` changes from the second step on
    state, metrics = update(state, batch(rng))
  after, still = split(c, state.params)
  jax.tree.map(np.testing.assert_array_equal, still, frozen)
  for path, moved in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, trained)
  ):
    assert moved > 0, f"{path} is to be trained, and does not move"
  assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


def test_no_product_is_made_for_the_gradient_of_a_frozen_weight(rng):
  def products(part):
    c = experiment(part)
    tx, params = make_optimizer(c), fake_params(c.model)
    step = jax.make_jaxpr(make_train_step(c, tx))(first_state(c, tx, params), batch(rng))
    return str(step).count("dot_general")

  found = {part: products(part) for part in ("gates", "attention", "all")}
  # Four projections; then three matrices of the feed-forward, and the tied embedding.
  assert found["attention"] >= found["gates"] + 4, found
  assert found["all"] >= found["attention"] + 4, found


def test_adafactor_does_without_the_groups_that_are_frozen(rng):
  c = experiment("gates", name="adafactor")
  params, tx = fake_params(c.model), make_optimizer(c)
  trained, frozen = split(c, params)
  gradients = jax.tree.map(jnp.ones_like, trained)
  updates, _ = tx.update(gradients, tx.init(trained), trained)
  assert names(updates) == {"beta_H"}
  jax.tree.map(np.testing.assert_array_equal, join(trained, frozen), params)


def test_attention_has_its_biases_and_norms():
  c = experiment("attention")
  params = fake_params(changed(c.model, attention_bias=True, qk_norm=True))
  trained, frozen = split(c, params)
  own = {"b_q_HE", "b_k_KE", "b_v_KE", "scale_E"}
  assert names(trained) == PARTS["attention"] | own
  assert set(trained["blocks"]["attention"]) >= {"q_norm", "k_norm"}
  assert names(frozen["blocks"]["attention"]) == set()


def test_everything_is_trained_by_default():
  c = experiment("all")
  params = fake_params(c.model)
  trained, frozen = split(c, params)
  assert not jax.tree.leaves(frozen)
  jax.tree.map(np.testing.assert_array_equal, trained, params)
