"""The learning rate: its warm-up, its steady part, and the shapes of its decay."""

import jax
import numpy as np
import pytest

from infini_jax.training.schedule import make_schedule
from tests.tiny import config

SHAPES = {
  "linear": lambda done: 1 - done,
  "sqrt": lambda done: 1 - done**0.5,
  "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
}


def rates(steps, peak=3.0, **optimizer):
  rate = jax.jit(make_schedule(config(optimizer=optimizer, train={"steps": steps}), peak))
  return np.array([rate(step) for step in range(steps)])


def test_schedule_warms_up_and_ends_where_it_says():
  c = config(
    optimizer={"warmup_steps": 10, "final_fraction": 0.2, "learning_rate": 3.0},
    train={"steps": 110},
  )
  rate = make_schedule(c, c.optimizer.learning_rate)
  np.testing.assert_allclose([rate(s) for s in (0, 4, 9, 10)], [0.3, 1.5, 3.0, 3.0], rtol=1e-6)
  np.testing.assert_allclose(rate(60), 3.0 * (0.2 + 0.8 / 2), rtol=1e-6)
  np.testing.assert_allclose([rate(110), rate(500)], [0.6, 0.6], rtol=1e-5)
  values = np.array([rate(s) for s in range(111)])
  assert (np.diff(values[:10]) > 0).all() and (np.diff(values[10:]) <= 1e-6).all()


def test_schedule_without_warm_up_starts_at_the_peak():
  c = config(optimizer={"warmup_steps": 0}, train={"steps": 10})
  np.testing.assert_allclose(make_schedule(c, 2.0)(0), 2.0, rtol=1e-6)


def test_a_constant_rate_stays_at_its_peak():
  got = rates(40, schedule="constant", warmup_steps=8)
  np.testing.assert_allclose(got[:8], 3.0 * np.arange(1, 9) / 8, rtol=1e-6)
  assert (got[7:] == 3).all()


def test_a_linear_decay_follows_the_warm_up():
  got = rates(60, schedule="linear", warmup_steps=10, final_fraction=0.1)
  left = 1 - np.arange(50) / 50
  np.testing.assert_allclose(got[10:], 3 * (0.1 + 0.9 * left), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decay_of_wsd_has_its_steps_its_shape_and_its_end(rng, shape):
  steps, decay, warmup = 90, int(rng.integers(1, 70)), int(rng.integers(0, 20))
  final = float(rng.uniform(0, 1))
  wsd = {"schedule": "wsd", "decay_steps": decay, "decay_shape": shape, "final_fraction": final}
  got = rates(steps, warmup_steps=warmup, **wsd)
  assert (got[warmup : steps - decay + 1] == 3).all(), "before a decay, the peak to the bit"
  left = SHAPES[shape](np.arange(decay) / decay)
  np.testing.assert_allclose(got[steps - decay :], 3 * (final + (1 - final) * left), rtol=1e-5)


def test_before_the_decay_the_rates_do_not_depend_on_the_length():
  short = rates(50, schedule="wsd", decay_steps=10, warmup_steps=7, decay_shape="linear")
  long = rates(90, schedule="wsd", decay_steps=30, warmup_steps=7, final_fraction=0.0)
  constant = rates(90, schedule="constant", warmup_steps=7)
  np.testing.assert_array_equal(short[:41], long[:41])
  np.testing.assert_array_equal(constant[:61], long[:61])
