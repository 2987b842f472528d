import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.config import MeshConfig
from infini_jax.parallel import make_mesh, param_shardings
from infini_jax.training.optimizer import apply, averaged, make_optimizer
from infini_jax.training.schedule import make_schedule
from tests.tiny import array, config, like

NAMES = ["adamw", "adafactor", "muon", "lion"]


def params(rng, L=2):
  f = lambda *shape: array(rng.standard_normal(shape), jnp.float32)
  return {
    "embed_VD": f(12, 6),
    "blocks": {
      "attention": {
        "w_q_DHE": f(L, 6, 2, 4),
        "b_q_HE": f(L, 2, 4),
        "mixer": {"beta_H": f(L, 2)},
      },
      "ffn_norm": {"scale_E": f(L, 6)},
    },
    "final_norm": {"scale_E": f(6)},
  }


def beta(tree):
  return tree["blocks"]["attention"]["mixer"]["beta_H"]


def steps(tx, params, gradients):
  state, update = tx.init(params), jax.jit(tx.update)
  for g in gradients:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(rng, name):
  c = config(optimizer={"name": name, "weight_decay": 0.1, "warmup_steps": 0})
  start = params(rng)
  after = steps(make_optimizer(c), start, [jax.tree.map(jnp.zeros_like, start)] * 2)
  np.testing.assert_array_equal(beta(after), beta(start), err_msg="gates must not decay")
  assert jnp.all(jnp.abs(after["embed_VD"]) < jnp.abs(start["embed_VD"])), "matrices must decay"
  bias = lambda t: t["blocks"]["attention"]["b_q_HE"]
  np.testing.assert_array_equal(bias(after), bias(start), err_msg="biases must not decay")
  for tree in (lambda t: t["final_norm"], lambda t: t["blocks"]["ffn_norm"]):
    np.testing.assert_array_equal(
      tree(after)["scale_E"], tree(start)["scale_E"], err_msg=f"norms must not decay with {name}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_gates_have_their_own_learning_rate(rng, name):
  start = params(rng)
  gradients = [like(rng, start)] * 4
  moved = {}
  for gate_rate in (0.01, 0.03):
    c = config(optimizer={"name": name, "gate_learning_rate": gate_rate, "warmup_steps": 1})
    after = steps(make_optimizer(c), start, gradients)
    moved[gate_rate] = jax.tree.map(lambda a, b: np.asarray(a - b), after, start)
  np.testing.assert_allclose(beta(moved[0.03]), 3 * beta(moved[0.01]), rtol=1e-3)
  np.testing.assert_array_equal(moved[0.03]["embed_VD"], moved[0.01]["embed_VD"])


def test_a_gate_travels_the_sum_of_its_learning_rates(rng):
  c = config(optimizer={"gate_learning_rate": 0.05, "warmup_steps": 5}, train={"steps": 40})
  start = params(rng)
  ones = jax.tree.map(jnp.ones_like, start)
  after = steps(make_optimizer(c), start, [ones] * 40)
  total = sum(float(make_schedule(c, 0.05)(s)) for s in range(40))
  np.testing.assert_allclose(beta(start) - beta(after), np.full((2, 2), total), rtol=1e-3)


def test_adafactor_treats_stacked_layers_as_separate_tensors(rng):
  """A layer of the stack gets the same update as alone: scales are computed per layer."""
  c = config(optimizer={"name": "adafactor", "clip_norm": 0.0})
  w_LDF = array(rng.standard_normal((3, 130, 140)), jnp.float32)
  w_LDF *= jnp.array([1.0, 10.0, 0.1])[:, None, None]
  start = params(rng, L=3)
  start["blocks"]["w_DF"] = w_LDF
  gradients = [like(rng, start) for _ in range(3)]
  tx = make_optimizer(c)
  together = steps(tx, start, gradients)["blocks"]
  for layer in range(3):
    part = slice(layer, layer + 1)
    one = lambda t, part=part: {**t, "blocks": jax.tree.map(lambda x: x[part], t["blocks"])}
    alone = steps(tx, one(start), [one(g) for g in gradients])["blocks"]
    for name in ("w_DF", "ffn_norm"):
      got = jax.tree.map(lambda x, part=part: x[part], together[name])
      compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
      jax.tree.map(compare, got, alone[name])


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_scaled_by_the_learning_rate(rng, name):
  """Without a gradient, every optimizer multiplies a matrix by 1 - rate * decay."""
  fields = {"name": name, "weight_decay": 0.1, "learning_rate": 0.02, "warmup_steps": 2}
  c = config(optimizer=fields)
  start = params(rng)
  after = steps(make_optimizer(c), start, [jax.tree.map(jnp.zeros_like, start)] * 2)
  kept = (1 - 0.01 * 0.1) * (1 - 0.02 * 0.1)
  np.testing.assert_allclose(
    after["embed_VD"], start["embed_VD"] * kept, rtol=2e-4, err_msg=f"decay of {name}"
  )


def test_clipping_is_of_the_whole_gradient(rng):
  """A large gradient of one parameter scales all gradients down.

  Parameters start at zero: each is its update, and no digit is lost in a sum.
  """
  ones = jax.tree.map(jnp.ones_like, params(rng))
  start = jax.tree.map(jnp.zeros_like, ones)
  c = config(optimizer={"clip_norm": 1.0, "eps": 1.0, "warmup_steps": 0, "weight_decay": 0.0})
  clipped = steps(make_optimizer(c), start, [ones])
  norm = optax.tree.norm(ones)
  scaled = steps(make_optimizer(c), start, [jax.tree.map(lambda x: x / norm, ones)])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, scaled)
  free = config(optimizer={"clip_norm": 0.0, "eps": 1.0, "warmup_steps": 0, "weight_decay": 0.0})
  assert (
    np.abs(steps(make_optimizer(free), start, [ones])["embed_VD"] - clipped["embed_VD"]).max()
    > 1e-4
  )


# ---- Parameters in bfloat16.


def halved(tree):
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def after(params, updates, steps=1, seed=0):
  one = jax.jit(apply)
  for step in range(steps):
    params = one(params, updates, jax.random.fold_in(jax.random.key(seed), step))
  return params


def test_small_updates_move_bfloat16_as_far_as_float32():
  """Rounding to the nearest would lose each update: the next value above 1 is 1.0078."""
  ones = {"final_norm": {"scale_E": jnp.ones(4000, jnp.bfloat16)}}
  got = after(ones, jax.tree.map(lambda x: jnp.full(x.shape, 1e-4), ones), steps=200)
  moved = np.asarray(got["final_norm"]["scale_E"], np.float64) - 1
  assert (moved > 0).mean() > 0.8, "nearly all have moved"
  np.testing.assert_allclose(moved.mean(), 200 * 1e-4, rtol=0.05)


def test_rounding_goes_to_a_neighbour_and_is_right_in_the_mean(rng):
  x = rng.standard_normal(50) * 10.0 ** rng.integers(-6, 6, 50)
  params = {"w_DF": jnp.zeros((50, 4000), jnp.bfloat16)}
  want = np.asarray(x, np.float32)
  updates = {"w_DF": jnp.broadcast_to(want[:, None], (50, 4000))}
  got = np.asarray(after(params, updates)["w_DF"], np.float64)
  step = 2.0 ** (np.floor(np.log2(np.abs(want.astype(np.float64)))) - 7)
  assert (np.abs(got - want[:, None]) < step[:, None]).all()
  assert (np.abs(got.mean(1) - want) < 5 * step / 2 / 4000**0.5).all(), "five standard errors"


def test_values_that_bfloat16_has_stay_and_what_is_not_finite_shows(rng):
  exact = array([0.0, -0.0, 1.0, -2.5, 3e38, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
  got = after({"scale_E": exact}, {"scale_E": jnp.zeros(8)})["scale_E"]
  np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(exact, np.float32))


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 2, 2, 2)], ids=str)
def test_every_mesh_rounds_alike(rng, sizes):
  start = jax.tree.map(lambda x: jnp.tile(x, (1,) * (x.ndim - 1) + (4,)), params(rng))
  start = {"embed_VD": start["embed_VD"], "final_norm": start["final_norm"]}
  updates, start = jax.tree.map(lambda x: x * 1e-3, start), halved(start)
  mesh = make_mesh(MeshConfig(*sizes))
  place = lambda tree: jax.device_put(tree, param_shardings(tree, mesh))
  with jax.set_mesh(mesh):
    got = after(place(start), place(updates), steps=2)
  jax.tree.map(np.testing.assert_array_equal, got, after(start, updates, steps=2))
  other = after(start, updates, steps=2, seed=1)
  assert (other["embed_VD"] != got["embed_VD"]).any(), "another seed, other bits"


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_bfloat16_are_those_of_float32(rng, name):
  """They are computed and stored in float32: in bfloat16, a mean of many squares stops changing."""
  tx, start = make_optimizer(config(optimizer={"name": name})), halved(params(rng))
  gradients = halved(like(rng, start))
  single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  update = jax.jit(tx.update)
  got, want = (
    update(g, tx.init(p), p) for g, p in ((gradients, start), (single(gradients), single(start)))
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)
  floats = [x.dtype for x in jax.tree.leaves(got) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {jnp.dtype(jnp.float32)}


def test_float32_parameters_are_added_to_as_ever(rng):
  start = params(rng)
  updates = like(rng, start)
  jax.tree.map(
    np.testing.assert_array_equal,
    after(start, updates),
    jax.jit(optax.apply_updates)(start, updates),
  )


# ---- Groups of weight decay, and the average of the parameters.


@pytest.mark.parametrize("name", NAMES)
def test_each_group_decays_as_much_as_it_is_told(rng, name):
  """Without a gradient, a parameter is multiplied by 1 - rate * decay."""
  times = {"matrices": 2.0, "embeddings": 0.0, "vectors": 0.5, "gates": 3.0}
  rates = {"learning_rate": 0.02, "gate_learning_rate": 0.03, "schedule": "constant"}
  fields = {"name": name, "weight_decay": 0.1, "warmup_steps": 0, **rates}
  start = params(rng)
  end = steps(
    make_optimizer(config(optimizer=fields, weight_decay=times)),
    start,
    [jax.tree.map(jnp.zeros_like, start)],
  )
  attention = lambda t: t["blocks"]["attention"]
  for group, rate, of in (
    ("matrices", 0.02, lambda t: attention(t)["w_q_DHE"]),
    ("embeddings", 0.02, lambda t: t["embed_VD"]),
    ("vectors", 0.02, lambda t: attention(t)["b_q_HE"]),
    ("vectors", 0.02, lambda t: t["final_norm"]["scale_E"]),
    ("vectors", 0.02, lambda t: t["blocks"]["ffn_norm"]["scale_E"]),
    ("gates", 0.03, beta),
  ):
    left = 1 - rate * 0.1 * times[group]
    np.testing.assert_allclose(of(end), of(start) * left, rtol=1e-5, err_msg=group)


def test_lion_moves_every_parameter_by_its_rate(rng):
  fields = {"name": "lion", "learning_rate": 0.02, "gate_learning_rate": 0.05, "warmup_steps": 0}
  c = config(optimizer=fields | {"schedule": "constant", "weight_decay": 0.0})
  start = params(rng)
  end = steps(make_optimizer(c), start, [like(rng, start) for _ in range(3)])
  for path, moved in jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.subtract, end, start)):
    if path[-1].key != "beta_H":  # a sum of three steps
      odd = np.abs(np.asarray(moved)) / 0.02
      np.testing.assert_allclose(odd, np.where(odd > 2, 3, 1), rtol=1e-4, err_msg=str(path))


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_the_decay_of_embeddings_by_itself_changes_nothing_else(rng, name):
  start = params(rng)
  gradients = [like(rng, start) for _ in range(2)]
  plain, own = (
    steps(make_optimizer(config(optimizer={"name": name}, weight_decay=decay)), start, gradients)
    for decay in ({}, {"embeddings": 0.5})
  )
  assert (plain.pop("embed_VD") != own.pop("embed_VD")).any()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, plain, own)


def test_the_average_is_the_weighted_mean_of_what_followed_each_update(rng):
  decay = float(rng.uniform(0.01, 0.9999))
  c = config(optimizer={"ema": decay})
  seen = rng.standard_normal((30, 4)).astype(np.float32)
  ema = {"scale_E": jnp.full(4, 10, jnp.float32)}  # the start has no weight but rounding
  one = jax.jit(lambda ema, x, step: averaged(c, ema, {"scale_E": x}, step))
  for step, x in enumerate(seen):
    ema = one(ema, array(x), step)
    weights = decay ** np.arange(step, -1, -1, dtype=np.float64)
    want = (weights[:, None] * seen[: step + 1]).sum(0) / weights.sum()
    np.testing.assert_allclose(ema["scale_E"], want, rtol=1e-4, atol=1e-5)
