"""Where training starts: fresh parameters, or those of another run."""

from typing import Any

import jax
import optax

from infini_jax.config import Config, InputError
from infini_jax.models import abstract_params, init
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.step import TrainState, first_state, initial_state


def check_start(config: Config) -> None:
  """Makes sure that the parameters of `config.train.start_from`, if any, are those of this model.

  Raises:
    InputError: no run or no checkpoint there, or parameters of other shapes.
  """
  if not config.train.start_from:
    return
  run = Workdir(config.train.start_from)
  there, here = _shapes(run.config()), _shapes(config)
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      raise InputError(
        f"config.train.start_from={config.train.start_from!r}: its parameter {name} is "
        f"{there.get(name, 'missing')}, this config's {here.get(name, 'missing')}: "
        f"set config.model as in its run.json"
      )
  if Checkpoints(run).latest() is None:
    raise InputError(
      f"config.train.start_from={config.train.start_from!r}: no checkpoint there; train it first"
    )


def start_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """The state at step 0."""
  if not config.train.start_from:
    return initial_state(config, tx, mesh)
  run = Checkpoints(Workdir(config.train.start_from))
  params, _ = run.restore_params(abstract_params(config.model, mesh))
  run.close()
  return first_state(config, tx, params)


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
  tree = jax.eval_shape(lambda: init(config.model, jax.random.key(0)))
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}
