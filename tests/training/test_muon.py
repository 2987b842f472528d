"""Muon makes each matrix of each layer orthogonal by itself, on every mesh."""

import jax
import numpy as np
import optax
import pytest

from infini_jax.config import InputError, MeshConfig
from infini_jax.parallel import make_mesh, param_shardings
from infini_jax.training.muon import RMS, is_matrix
from infini_jax.training.optimizer import check_matrices, make_optimizer
from tests.tiny import config, fake_params, like

MODEL = {"rule": "delta", "write_gate": True, "adapter_rank": 2, "lora_rank": 4, "width": 32}
# Where the two sides of each matrix of a layer meet: (D, H E), (H E, D), ...
SIDES = {
  "w_q_DHE": 1, "w_k_DKE": 1, "w_v_DKE": 1, "w_o_HED": 2, "w_up_DF": 1, "w_gate_DF": 1,
  "w_down_FD": 1, "down_DR": 1, "down_HER": 2, "up_RHE": 1, "up_RKE": 1, "up_RD": 1,
}  # fmt: skip


def muon(**optimizer):
  fields = {"name": "muon", "clip_norm": 0.0, "warmup_steps": 0, "schedule": "constant"}
  return config(model=MODEL, optimizer=fields | optimizer)


def updates(tx, params, gradients):
  state, update = tx.init(params), jax.jit(tx.update)
  for g in gradients:
    made, state = update(g, state, params)
  return made, state


def names(tree):
  return {path[-1].key: path for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
def test_each_layers_matrix_is_updated_as_if_it_were_alone(rng):
  """Compared with Optax's Muon of a single matrix, with all heads side by side."""
  c = muon(learning_rate=0.02, weight_decay=0.3)
  params = fake_params(c.model, int(rng.integers(1 << 30)))
  gradients = [like(rng, params) for _ in range(2)]
  got, _ = updates(make_optimizer(c), params, gradients)
  alone = optax.contrib.muon(0.02, beta=c.optimizer.momentum, weight_decay=0.3, consistent_rms=RMS)
  flat = jax.tree_util.tree_leaves_with_path
  found = set()
  for (path, update), (_, param), *grads in zip(
    flat(got), flat(params), *(flat(g) for g in gradients), strict=True
  ):
    name = path[-1].key
    if not is_matrix(path):
      continue
    found.add(name)
    for layer in range(c.model.layers):
      sides = param.shape[1 : SIDES[name] + 1]
      square = lambda x, layer=layer, sides=sides: x[layer].reshape(int(np.prod(sides)), -1)
      want, _ = updates(alone, {"w": square(param)}, [{"w": square(g)} for _, g in grads])
      np.testing.assert_allclose(
        square(update), want["w"], rtol=1e-3, atol=2e-6, err_msg=f"{name}, layer {layer}"
      )
  assert found == set(SIDES)


def test_an_update_is_nearly_orthogonal_and_as_large_as_that_of_adam(rng):
  c = muon(learning_rate=1.0, weight_decay=0.0)
  params = fake_params(c.model)
  got, _ = updates(make_optimizer(c), params, [like(rng, params)])
  attention = got["blocks"]["attention"]
  for name, sides in (("w_q_DHE", (32, 16)), ("w_o_HED", (16, 32))):
    for update in np.asarray(attention[name]):
      values = np.linalg.svd(update.reshape(sides), compute_uv=False)
      size = RMS * max(sides) ** 0.5
      assert (values > 0.3 * size).all() and (values < 1.3 * size).all(), (name, values / size)


def test_all_that_is_no_matrix_of_a_layer_is_updated_as_by_adamw(rng):
  made = muon()
  params = fake_params(made.model)
  gradients = [like(rng, params) for _ in range(2)]
  got, _ = updates(make_optimizer(made), params, gradients)
  want, _ = updates(make_optimizer(muon(name="adamw")), params, gradients)
  flat = jax.tree_util.tree_leaves_with_path
  for (path, a), (_, b) in zip(flat(got), flat(want), strict=True):
    same = np.array_equal(a, b)
    assert same != is_matrix(path), path
  others = {"embed_VD", "scale_E", "beta_H", "w_write_DK", "b_write_K"}
  assert {name for name, path in names(got).items() if not is_matrix(path)} == others


@pytest.mark.parametrize("layers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8))])
@pytest.mark.parametrize(
  "sizes", [pytest.param((8, 1, 1, 1), marks=pytest.mark.slow), (1, 2, 2, 2)], ids=str
)
def test_every_mesh_makes_the_same_update_and_keeps_its_layout(rng, sizes, layers):
  made = config(model={"layers": layers}, optimizer={"name": "muon", "weight_decay": 0.1})
  params = fake_params(made.model)
  gradients = [like(rng, params) for _ in range(2)]
  tx = make_optimizer(made)
  want, want_state = updates(tx, params, gradients)
  mesh = make_mesh(MeshConfig(*sizes))
  place = lambda tree: jax.device_put(tree, param_shardings(tree, mesh))
  with jax.set_mesh(mesh):
    got, state = updates(tx, place(params), [place(g) for g in gradients])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, jax.device_get((got, state)), jax.device_get((want, want_state)))
  stored = jax.tree.map(lambda x: x.sharding.spec, place(params))
  assert jax.tree.map(lambda x: x.sharding.spec, got) == stored


def test_a_part_without_a_matrix_is_refused():
  plain = {"model": {"rule": "delta"}, "optimizer": {"name": "muon"}}
  with pytest.raises(InputError, match="train.part='gates': no matrix of the layers is trained; s"):
    check_matrices(config(train={"part": "gates"}, **plain))
  adapted = plain | {"model": {"rule": "delta", "adapter_rank": 2}}
  check_matrices(config(train={"part": "gates"}, **adapted))
  check_matrices(config(train={"part": "attention"}, **plain))
  check_matrices(config(train={"part": "gates"}, model={"rule": "delta"}))
