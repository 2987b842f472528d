"""One update: its loss, the carried state, and a single compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.config import MeshConfig
from infini_jax.models import bind
from infini_jax.parallel import make_mesh, put_batch
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import (
  TrainState,
  abstract_state,
  initial_state,
  make_train_step,
)
from tests.tiny import array, config, fake_params

B, S, N = 8, 2, 8


def experiment(**sections):
  """With a large epsilon; otherwise Adam makes a full step from the noise of a gradient near 0."""
  model = {"segment_length": N, "vocab_size": 32, **sections.pop("model", {})}
  optimizer = {"eps": 1e-3, **sections.pop("optimizer", {})}
  return config(model=model, optimizer=optimizer, **sections)


def batch(rng):
  """Lanes with very different numbers of real tokens; the first reads what it has written."""
  tokens = rng.integers(0, 32, (B, S * N)).astype(np.int32)
  reset = rng.random((B, S)) < 0.3
  reset[0] = False
  return {
    "tokens_BT": tokens,
    "targets_BT": rng.integers(0, 32, (B, S * N)).astype(np.int32),
    "mask_BT": np.arange(S * N)[None] < np.array([16, 16, 1, 3, 9, 16, 12, 5])[:, None],
    "reset_BS": reset,
  }


class Run:
  """A compiled step on one device, and its states."""

  def __init__(self, c):
    tx, params = make_optimizer(c), fake_params(c.model)
    memory = bind(c.model, params).state(B) if c.data.carry_state else None
    opt_state = jax.jit(tx.init)(params)
    memory = memory if jax.tree.leaves(memory) else None
    warm = bind(c.model, params).state(c.data.lanes) if c.warm.share else None
    self.start = TrainState(jnp.zeros((), jnp.int32), params, opt_state, memory, warm)
    self.update = jax.jit(make_train_step(c, tx))

  def __call__(self, *batches):
    state, metrics = self.start, None
    for b in batches:
      state, metrics = self.update(state, b)
    return state, jax.device_get(metrics)


@pytest.fixture(scope="module")
def plain():
  return Run(experiment())


def assert_same(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_same_sums(got, want):
  for name in {"loss", "tokens", "grad_norm", "answer_accuracy"} & want.keys():
    np.testing.assert_allclose(
      got[name], want[name], rtol=1e-5, err_msg=f"{name}: weigh microbatches by tokens"
    )


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_microbatches_make_the_same_update(rng, plain, parts):
  batches = [batch(rng) for _ in range(2)]
  state, metrics = plain(*batches)
  got, got_metrics = Run(experiment(train={"accumulate": parts}))(*batches)
  assert_same_sums(got_metrics, metrics)
  assert_same(got.memory, state.memory, rtol=1e-4, atol=1e-5)
  assert_same(got.params, state.params, rtol=1e-3, atol=1e-4)


def test_loss_is_the_mean_over_real_tokens(rng, plain):
  b = batch(rng)
  _, metrics = plain(b)
  model = bind(experiment().model, plain.start.params)
  tokens, reset, mask = (array(b[k]) for k in ("tokens_BT", "reset_BS", "mask_BT"))
  hidden, _ = model(tokens, model.state(B), reset_BS=reset, mask_BT=mask)
  log_p = np.asarray(jax.nn.log_softmax(model.logits(hidden)), np.float64)
  nll = -np.take_along_axis(log_p, b["targets_BT"][..., None], 2)[..., 0]
  assert metrics["tokens"] == b["mask_BT"].sum()
  np.testing.assert_allclose(metrics["loss"], nll[b["mask_BT"]].mean(), rtol=1e-5)


@pytest.mark.slow
def test_a_penalty_on_what_is_written_weighs_the_same_in_microbatches(rng):
  """One layer without a loss: only the penalty moves the write gates."""
  penalized = {"layers": 1, "write_gate": True, "write_penalty": 3.0}
  b = batch(rng) | {"weights_BT": np.zeros((B, S * N), np.float32)}

  def moved(parts):
    run = Run(experiment(model=penalized, train={"accumulate": parts}))
    of = lambda state: state.params["blocks"]["attention"]["mixer"]["b_write_K"]
    return of(run(b)[0]) - of(run.start)

  assert np.abs(moved(1)).max() > 1e-3, "a weak test"
  np.testing.assert_allclose(moved(4), moved(1), rtol=1e-4)


def task_batch(rng):
  """Like `batch`, with loss weights and answers; two lanes have no answers."""
  b = batch(rng)
  asked = (rng.random((B, S * N)) < 0.4) & b["mask_BT"]
  asked[0, :9], asked[1:3] = True, False
  weights = np.where(b["mask_BT"], rng.random((B, S * N)), 0).astype(np.float32)
  return {**b, "asked_BT": asked, "weights_BT": weights}


def test_a_tasks_loss_is_weighed_and_its_answers_are_counted(rng, plain):
  b = task_batch(rng)
  model = bind(experiment().model, plain.start.params)
  tokens, reset, mask = (array(b[k]) for k in ("tokens_BT", "reset_BS", "mask_BT"))
  hidden, _ = model(tokens, model.state(B), reset_BS=reset, mask_BT=mask)
  logits = np.asarray(model.logits(hidden), np.float64)
  best = logits.argmax(-1)
  b["targets_BT"] = np.where(rng.random((B, S * N)) < 0.5, best, b["targets_BT"]).astype(np.int32)
  log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)), np.float64)
  nll = -np.take_along_axis(log_p, b["targets_BT"][..., None], 2)[..., 0]
  _, metrics = plain(b)
  mean = (nll * b["weights_BT"]).sum() / b["weights_BT"].sum()
  np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)
  right = (best == b["targets_BT"])[b["asked_BT"]].mean()
  assert 0.1 < right < 0.95, "a weak test"
  np.testing.assert_allclose(metrics["answer_accuracy"], right, rtol=1e-5)
  assert metrics["tokens"] == b["mask_BT"].sum()


def test_little_weight_makes_a_small_update_where_long_examples_are_read_in_parts(rng, plain):
  b = task_batch(rng)
  own = b["weights_BT"] / b["weights_BT"].sum()
  of = lambda total: plain(b | {"weights_BT": (total * own).astype(np.float32)})[1]
  one, many, few, none = map(of, (1, 40, 0.25, 0))
  for metrics, share in ((many, 1), (few, 0.25), (none, 0)):
    np.testing.assert_allclose(metrics["grad_norm"], share * one["grad_norm"], rtol=1e-5)
  for metrics in (many, few):
    np.testing.assert_allclose(metrics["loss"], one["loss"], rtol=1e-5, err_msg="it is a mean")
  assert none["loss"] == 0


def test_microbatches_make_the_same_update_of_a_task(rng, plain):
  b = task_batch(rng)
  state, metrics = plain(b)
  got, got_metrics = Run(experiment(train={"accumulate": 4}))(b)
  assert "answer_accuracy" in metrics
  assert_same_sums(got_metrics, metrics)
  assert_same(got.params, state.params, rtol=1e-3, atol=1e-4)


def test_padding_does_not_change_the_update(rng, plain):
  b = batch(rng)
  other = {**b, "targets_BT": np.where(b["mask_BT"], b["targets_BT"], 7)}
  other["tokens_BT"] = np.where(b["mask_BT"], b["tokens_BT"], 9)
  (state, metrics), (got, got_metrics) = plain(b), plain(other)
  assert metrics["loss"] == got_metrics["loss"]
  assert_same(got.params, state.params, rtol=1e-6, atol=1e-7)


def test_state_is_carried_only_when_asked_for(rng, plain):
  first, second = batch(rng), batch(rng)
  second["reset_BS"][:] = False
  carried, metrics = plain(first, second)
  assert np.any(carried.memory.z_BKE)
  dropped = Run(experiment(data={"carry_state": False}))
  state, alone = dropped(first, second)
  assert state.memory is None
  assert abs(alone["loss"] - metrics["loss"]) > 1e-6, "the second step does not read the first"
  # A reset at the first segment equals a state that is not carried.
  second["reset_BS"][:, 0] = True
  np.testing.assert_allclose(plain(first, second)[1]["loss"], alone["loss"], rtol=1e-6)


@pytest.mark.parametrize(
  "mixer",
  [*(pytest.param(name, marks=pytest.mark.slow) for name in ("local", "full")), "transformer_xl"],
)
def test_baselines_train_and_carry_nothing(rng, mixer):
  c = experiment(model={"mixer": mixer}, data={"carry_state": False})
  losses = []
  run, b = Run(c), batch(rng)
  state = run.start
  for _ in range(12):
    state, metrics = run.update(state, b)
    losses.append(float(metrics["loss"]))
  assert state.memory is None and losses[-1] < losses[0] - 0.1, losses
  assert "gates_LH" not in metrics


def test_training_learns(rng, plain):
  state, b, losses = plain.start, batch(rng), []
  for _ in range(12):
    state, metrics = plain.update(state, b)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0] - 0.3, f"a repeated batch is not learned: {losses}"
  assert int(state.step) == 12


def test_z_loss_pulls_the_normalizer_and_is_not_reported(rng, plain):
  b = batch(rng)
  state, metrics = plain(b)
  got, got_metrics = Run(experiment(train={"z_loss": 1.0}))(b)
  np.testing.assert_allclose(got_metrics["loss"], metrics["loss"], rtol=1e-6)
  assert got_metrics["grad_norm"] > 1.05 * metrics["grad_norm"]


def test_metrics_of_the_memory(rng, plain):
  state, metrics = plain(batch(rng))
  beta = state.params["blocks"]["attention"]["mixer"]["beta_H"]
  np.testing.assert_allclose(metrics["gates_LH"], jax.nn.sigmoid(beta), rtol=1e-6)
  M = np.asarray(state.memory.M_BKEU)
  np.testing.assert_allclose(metrics["memory_L"], (M**2).mean((1, 2, 3, 4)) ** 0.5, rtol=1e-5)
  z = np.asarray(state.memory.z_BKE)
  np.testing.assert_allclose(metrics["z_L"], z.mean((1, 2, 3)), rtol=1e-5)
  assert np.any(metrics["gate_grad_LH"]) and metrics["gate_grad_LH"].shape == (2, 2)


def test_one_compilation_and_the_planned_shapes_are_the_real_ones(rng):
  c = experiment()
  tx = make_optimizer(c)
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    planned = abstract_state(c, tx, mesh)
    state = initial_state(c, tx, mesh)
    update = jax.jit(make_train_step(c, tx), donate_argnums=0)
    ahead = update.lower(planned, put_batch(batch(rng), mesh, B)).compile()
    for _ in range(3):
      state, _ = update(state, put_batch(batch(rng), mesh, B))
    assert update._cache_size() == 1, (
      "a step compiles again: its output is not laid out as its input"
    )
    ahead(state, put_batch(batch(rng), mesh, B))


GOLDEN = {"loss": 4.0114, "grad_norm": 1.9480, "memory_L": 6.3017, "z_L": 13.710, "params": 20.015}


def test_two_fixed_steps_give_the_recorded_figures():
  rng = np.random.default_rng(0)
  c = experiment(model={"rule": "delta", "kv_heads": 1})
  state, metrics = Run(c)(batch(rng), batch(rng))
  metrics["params"] = optax.tree.norm(state.params)
  got = {name: float(np.mean(metrics[name])) for name in GOLDEN}
  np.testing.assert_allclose(
    list(got.values()),
    list(GOLDEN.values()),
    rtol=1e-3,
    err_msg=f"The numbers of fixed steps changed. If you did not intend to change behaviour, find "
    f"out why; if you did, say so in the commit and set GOLDEN = {got}",
  )


def test_vectors_in_bfloat16_learn(rng):
  """Also at rates below half the distance of two values, where rounding to nearest changes none."""
  c = experiment(model={"param_dtype": "bfloat16"}, optimizer={"learning_rate": 1e-3})
  run, batches = Run(c), [batch(rng) for _ in range(12)]
  start = run.start.params
  state, _ = run(*batches)
  moved = lambda tree, old: float(jnp.mean(tree["scale_E"] != old["scale_E"]))
  assert state.params["final_norm"]["scale_E"].dtype == jnp.bfloat16
  for norm in ("attention_norm", "ffn_norm"):
    assert moved(state.params["blocks"][norm], start["blocks"][norm]) > 0, norm
  again, _ = run(*batches)
  jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_loss_of_text_beside_a_task_is_that_of_its_lanes(rng, accumulate):
  c = experiment(
    data={"carry_state": False}, train={"accumulate": accumulate}, log={"tensorboard": False}
  )
  b = batch(rng) | {"text_B": np.arange(B) >= 3}
  b["weights_BT"] = rng.uniform(0.1, 1, b["mask_BT"].shape).astype(np.float32) * b["mask_BT"]
  b["asked_BT"] = b["mask_BT"] & ~b["text_B"][:, None]
  run = Run(c)
  _, metrics = run(b)

  def log_probabilities(params, tokens_BT, reset_BS, mask_BT):
    model = bind(c.model, params)
    hidden_BTD, _ = model(tokens_BT, model.state(B), reset_BS=reset_BS, mask_BT=mask_BT)
    return jax.nn.log_softmax(model.logits(hidden_BTD), axis=-1)

  arrays = (b[name] for name in ("tokens_BT", "reset_BS", "mask_BT"))
  logp_BTV = np.asarray(jax.jit(log_probabilities)(run.start.params, *arrays))
  nll_BT = -np.take_along_axis(logp_BTV, b["targets_BT"][..., None], -1)[..., 0]
  expected = nll_BT[3:][b["mask_BT"][3:]].mean()
  np.testing.assert_allclose(metrics["text_loss"], expected, rtol=1e-4)
  assert abs(metrics["loss"] - expected) > 1e-6, "a weak test: all lanes have this loss"


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_average_of_the_parameters_is_kept_in_float32_and_spared_by_a_bad_step(rng, dtype):
  c = experiment(model={"param_dtype": dtype}, optimizer={"ema": 0.6})
  run, seen = Run(c), []
  state = run.start
  trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32), state.params)
  state = dataclasses.replace(state, ema=trained)
  for bad in (False, False, True, False):
    b, before = batch(rng), state
    if bad:
      b["weights_BT"] = np.full(b["mask_BT"].shape, np.nan, np.float32)
    else:
      b["weights_BT"] = b["mask_BT"].astype(np.float32)
    state, _ = run.update(state, b)
    if bad:
      assert_same(state.ema, before.ema, rtol=0)
      seen.append((jax.device_get(before.ema), 0.0))
    else:
      seen.append((jax.device_get(state.params), 1.0))
  assert {x.dtype for x in jax.tree.leaves(state.ema)} == {jnp.dtype("float32")}
  want = trained
  for step, (now, good) in enumerate(seen):
    new = good * (1 - 0.6) / (1 - 0.6 ** (step + 1))
    want = jax.tree.map(lambda a, x, w=new: np.float32(x) * w + (1 - w) * np.asarray(a), want, now)
  assert_same(state.ema, want, rtol=1e-5, atol=1e-6)
  assert np.abs(np.float32(state.params["embed_VD"]) - state.ema["embed_VD"]).max() > 1e-4


def test_the_average_of_a_part_is_of_what_is_trained(rng):
  c = experiment(train={"part": "attention"}, optimizer={"ema": 0.9})
  tx, mesh = make_optimizer(c), make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    state = abstract_state(c, tx, mesh)
    after, _ = jax.eval_shape(make_train_step(c, tx), state, put_batch(batch(rng), mesh, B))
  assert state.ema["embed_VD"] is None and state.ema["blocks"]["attention"]["w_q_DHE"] is not None
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
