"""Warm memory in a step: the state equals that of one long call, and has no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.models import bind
from infini_jax.tasks import make_task, train_lanes
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import make_train_step
from tests.tiny import array, config
from tests.training.test_step import Run, assert_same, batch, experiment

STEPS = 3
STILL = {"learning_rate": 1e-30, "gate_learning_rate": 1e-30, "weight_decay": 0.0}


def task_config(**sections):
  """Four lanes of passkey examples; parameters do not change; every chunk starts warm."""
  warm = {"share": 1.0, "segments": 2, "min_tokens": 32, "max_tokens": 80}
  return config(
    model={"segment_length": 16, "vocab_size": 64, "rule": "delta", **sections.pop("model", {})},
    data={"tokenizer": "task", "carry_state": False, "lanes": 4, "segments": 5},
    task={"name": "passkey", "min_segments": 5},
    optimizer=STILL,
    warm=sections.pop("warm", warm),
    **sections,
  )


def reader(model):
  """A program that reads tokens: from parameters, tokens, a state, resets and a mask to a state."""
  return jax.jit(lambda p, t, s, r, m: bind(model, p)(t, s, reset_BS=r, mask_BT=m)[1])


class Case:
  """Three steps, and a program that reads all of their text in one call from an empty state."""

  def __init__(self):
    self.config = c = task_config()
    self.run = Run(c)
    lanes = train_lanes(c, make_task(c, "passkey"))
    self.batches = [lanes.batch(k) for k in range(STEPS + 1)]
    self.state, _ = self.run(*self.batches[:STEPS])
    self.last, self.metrics = self.run.update(self.state, self.batches[STEPS])
    read = self.batches[:STEPS]
    self.earlier = {
      name: np.concatenate([b[f"warm_{name}"] for b in read], 1)
      for name in ("tokens_BT", "mask_BT", "reset_BS")
    }
    self.graded = jax.jit(jax.value_and_grad(self.loss))
    self.read = reader(c.model)
    self.long = jax.device_get(self.graded(self.run.start.params, None))

  def loss(self, params, state):
    """The loss of the last batch, from this state; None: after all earlier text, in one call."""
    model, b = bind(self.config.model, params), self.batches[STEPS]
    names = ("tokens_BT", "mask_BT", "reset_BS")
    tokens, mask, reset = (b[n] for n in names)
    if state is None:
      tokens, mask, reset = (np.concatenate([self.earlier[n], b[n]], 1) for n in names)
      state = model.state(4)
    hidden, _ = model(tokens, state, reset_BS=array(reset), mask_BT=array(mask))
    T = b["tokens_BT"].shape[1]
    log_p = jax.nn.log_softmax(model.logits(hidden[:, -T:]))
    nll = -jnp.take_along_axis(log_p, array(b["targets_BT"])[..., None], 2)[..., 0]
    return (nll * b["weights_BT"]).sum() / b["weights_BT"].sum()


@pytest.fixture(scope="module")
def case():
  return Case()


def test_the_warm_state_is_that_of_one_reading_of_the_same_text(case):
  assert_same(case.state.params, case.run.start.params, rtol=0, atol=0)
  params = case.run.start.params
  tokens, mask, reset = (array(case.earlier[n]) for n in ("tokens_BT", "mask_BT", "reset_BS"))
  assert reset[:, 1:].any(), "a weak test: no companion started anew"
  empty = bind(case.config.model, params).state(4)
  afresh = case.read(params, tokens, empty, reset, mask)
  assert_same(case.state.warm, afresh, rtol=1e-4, atol=1e-5)
  assert case.state.memory is None
  # Companions read at every step, also at a step in which their state is taken over.
  b = case.batches[STEPS]
  more = {k: array(b[f"warm_{k}"]) for k in ("tokens_BT", "mask_BT", "reset_BS")}
  after = case.read(params, more["tokens_BT"], afresh, more["reset_BS"], more["mask_BT"])
  assert_same(case.last.warm, after, rtol=1e-4, atol=1e-5)


def test_the_loss_after_taking_over_is_that_of_one_long_call(case):
  assert case.batches[STEPS]["warm_B"].all() and not case.batches[0]["warm_B"].any()
  params = case.run.start.params
  long = case.long[0]
  np.testing.assert_allclose(case.metrics["loss"], long, rtol=1e-5)
  empty = bind(case.config.model, params).state(4)
  cold = case.graded(params, empty)[0]
  assert abs(cold - long) > 1e-4, "the earlier text does nothing: a weak test"


def test_no_gradient_flows_through_the_reading_of_earlier_text(case):
  graded = case.graded(case.run.start.params, case.state.warm), case.long
  constant, through = (float(optax.tree.norm(grads)) for _, grads in graded)
  np.testing.assert_allclose(case.metrics["grad_norm"], constant, rtol=1e-4)
  assert abs(through - constant) > 1e-3 * constant, "a weak test: the gradient would be the same"


def warm_batch(rng, warm):
  b = batch(rng)
  b["reset_BS"][:, 0] = False
  read = batch(rng)
  return {**b, **{f"warm_{k}": read[k] for k in ("tokens_BT", "mask_BT", "reset_BS")},
          "warm_B": np.array(warm)}  # fmt: skip


def test_only_flagged_lanes_take_over_a_state(rng):
  """The other lanes continue with their own carried states."""
  flags = [True, False] * 4
  run = Run(experiment(optimizer=STILL, warm={"share": 0.5}))
  first, second = warm_batch(rng, [False] * 8), warm_batch(rng, flags)
  before, _ = run(first)
  after, metrics = run.update(before, second)
  params, read = run.start.params, reader(experiment().model)
  choose = lambda w, m: jnp.where(np.array(flags).reshape(1, -1, *(1,) * (w.ndim - 2)), w, m)
  mixed = jax.tree.map(choose, before.warm, before.memory)
  for b, state, want in (
    (second, mixed, after.memory),
    ({k[5:]: v for k, v in second.items() if k[:5] == "warm_"}, before.warm, after.warm),
  ):
    tokens, mask, reset = (array(b[k]) for k in ("tokens_BT", "mask_BT", "reset_BS"))
    assert_same(read(params, tokens, state, reset, mask), want, rtol=1e-4, atol=1e-5)
  assert np.isfinite(metrics["loss"])


def test_without_a_share_the_program_has_no_warm_memory():
  programs = []
  for warm in ({}, {"share": 0.0, "segments": 7, "min_tokens": 5, "max_tokens": 9}):
    c = experiment(warm=warm)
    run = Run(c)
    assert run.start.warm is None
    step = jax.make_jaxpr(make_train_step(c, make_optimizer(c)))
    programs.append(str(step(run.start, batch(np.random.default_rng(0)))))
    after, _ = jax.eval_shape(run.update, run.start, batch(np.random.default_rng(0)))
    assert after.warm is None
  assert programs[0] == programs[1]


@pytest.mark.parametrize(
  "model",
  [
    {"layers": 1},
    pytest.param({"layers": 2, "pattern": ("local", "infini")}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_a_companion_that_fast_forwards_equals_reading_each_piece_that_often(model):
  """Exact for the linear rule in one layer, where keys and values depend only on the tokens."""
  warm = {"share": 0.5, "segments": 2, "min_tokens": 512, "max_tokens": 512, "growth": 2.0}
  c = task_config(model={"rule": "linear", **model}, warm=warm)
  run, lanes = Run(c), train_lanes(c, make_task(c, "passkey"))
  batches = [lanes.batch(k) for k in range(5)]
  state, _ = run(*batches)
  params, read = run.start.params, reader(c.model)
  expected, most = bind(c.model, params).state(4), 0
  for b in batches:
    tokens, mask, reset = (array(b[f"warm_{k}"]) for k in ("tokens_BT", "mask_BT", "reset_BS"))
    for time in range(int(b["warm_times_B"].max())):
      again = read(params, tokens, expected, reset & (time == 0), mask)
      still = time < b["warm_times_B"]
      choose = lambda a, e: jnp.where(still.reshape(1, -1, *(1,) * (a.ndim - 2)), a, e)  # noqa: B023
      expected = jax.tree.map(choose, again, expected)
    most = max(most, b["warm_times_B"].max())
  assert most == 8, "a weak test: the pieces of 32 tokens count 1, 1, 2, 4, 8 times"
  assert_same(state.warm, expected, rtol=1e-4, atol=1e-4)
