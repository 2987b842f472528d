"""Distillation: the teacher is the original, reads documents separately, and is not trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import original
from infini_jax.models import bind
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import first_state, make_train_step
from tests.tiny import array, changed, config, fake_params

B, S, N = 4, 2, 8


PATTERN = {"layers": 2, "pattern": ("infini", "full")}


def experiment(model=None, **train):
  fields = {"layers": 1, "segment_length": N, "vocab_size": 32, "gate": "hard_sigmoid"}
  return config(
    model=fields | (model or {}),
    data={"lanes": B, "segments": S, "carry_state": not model},
    train={"distill_weight": 2.0, "start_from": "RUN", **train},
    optimizer={"eps": 1e-3},
  )


def batch(rng):
  tokens = rng.integers(0, 32, (B, S * N + 1)).astype(np.int32)
  return {
    "tokens_BT": tokens[:, :-1],
    "targets_BT": tokens[:, 1:],
    "mask_BT": np.arange(S * N)[None] < np.array([16, 13, 3, 9])[:, None],
    "reset_BS": np.tile([True, False], (B, 1)),
  }


class Run:
  """A compiled step and its first state, with gates that stay shut."""

  def __init__(self, c):
    self.config = c
    params, tx = fake_params(c.model), make_optimizer(c)
    self.teacher = {**params, "blocks": {**params["blocks"]}}
    self.teacher["blocks"]["attention"] = {
      name: x for name, x in params["blocks"]["attention"].items() if name != "mixer"
    }
    mixer = params["blocks"]["attention"]["mixer"]
    mixer.get("infini", mixer)["beta_H"] = jnp.full((1, c.model.heads), -3.0)
    self.start = first_state(c, tx, params)
    self.update = jax.jit(make_train_step(c, tx))

  def __call__(self, batch, teacher=None):
    state, metrics = self.update(self.start, batch, teacher or self.teacher)
    return state, jax.device_get(metrics)


@pytest.fixture(scope="module", params=["infini", pytest.param("pattern", marks=pytest.mark.slow)])
def run(request):
  return Run(experiment(PATTERN if request.param == "pattern" else None))


def expected(run, batch):
  """Mean KL(teacher || student) of the start, in float64, from all logits at once."""

  def logits(model, params):
    bound = bind(model, params)
    hidden, _ = bound(array(batch["tokens_BT"]), bound.state(B))
    return bound.logits(hidden)

  c = run.config.model
  told, own = jax.jit(lambda t, s: (logits(original(c), t), logits(c, s)))(
    run.teacher, run.start.params
  )
  log_p = lambda x: x - np.logaddexp.reduce(x, -1, keepdims=True)
  told, own = (log_p(np.asarray(x, np.float64)) for x in (told, own))
  return (np.exp(told) * (told - own)).sum(-1)[batch["mask_BT"]].mean()


def test_the_divergence_is_that_of_the_original_over_the_chunk(rng, run):
  b = batch(rng)
  _, metrics = run(b)
  assert metrics["distillation"] > 1e-3, "the original sees more than a segment: a weak test"
  np.testing.assert_allclose(metrics["distillation"], expected(run, b), rtol=1e-4)


def test_documents_of_a_chunk_do_not_see_each_other(rng, run):
  """With one document per segment and shut gates, the model equals the original."""
  b = batch(rng) | {"reset_BS": np.ones((B, S), bool)}
  _, metrics = run(b)
  assert abs(metrics["distillation"]) < 1e-5
  told = jax.tree.map(lambda x: 1.1 * x, run.teacher)
  assert run(b, told)[1]["distillation"] > 1e-4, "the teacher is not heard"
  assert run(b, told)[1]["grad_norm"] != metrics["grad_norm"], "nothing is learned from it"


@pytest.mark.slow
def test_microbatches_make_the_same_update(rng, run):
  b = batch(rng)
  state, metrics = run(b)
  model = PATTERN if run.config.model.pattern else None
  got, got_metrics = Run(experiment(model, accumulate=2, loss_chunk=5))(b)
  for name in ("loss", "distillation", "grad_norm"):
    np.testing.assert_allclose(got_metrics[name], metrics[name], rtol=1e-4, err_msg=name)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, got.params, state.params)


def test_the_original_has_no_memory_and_no_adapters():
  model = changed(experiment().model, lora_rank=4, rope_theta=5e5)
  assert original(model) == changed(model, mixer="full", lora_rank=0)
  assert original(experiment(PATTERN).model) == changed(original(model), layers=2, rope_theta=1e4)
