"""The learning rate at each step: warm-up, a constant rate, and a decay to the last step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from infini_jax.config import Config, decay_start

# What is left of the rate, by how much of the decay is done: from 1 at 0 to 0 at 1.
SHAPES: dict[str, Callable] = {
  "cosine": lambda done: (1 + jnp.cos(jnp.pi * done)) / 2,
  "linear": lambda done: 1 - done,
  "sqrt": lambda done: 1 - jnp.sqrt(done),
}


def make_schedule(config: Config, peak: float) -> optax.Schedule:
  """A function of the updates taken: linear warm-up to `peak`, then the schedule of the config.

  A decay ends at `final_fraction` of the peak, at the last step. Before a decay of `wsd` the rate
  is the peak to the bit, so that runs with decays at other steps are equal up to there.
  """
  o, steps = config.optimizer, config.train.steps
  shape = SHAPES.get(o.decay_shape if o.schedule == "wsd" else o.schedule)
  start = decay_start(o, steps)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = (step + 1) / max(1, o.warmup_steps)
    if shape is None:  # constant
      return peak * jnp.minimum(warmup, 1)
    done = jnp.clip((step - start) / max(1, steps - start), 0, 1)
    share = o.final_fraction + (1 - o.final_fraction) * shape(done)
    if o.schedule == "wsd":
      share = jnp.where(done > 0, share, 1)
    return peak * jnp.minimum(warmup, share)

  return schedule
