"""The start of training: new parameters, or those of another run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from infini_jax.config import Config, InputError, ModelConfig, original
from infini_jax.models import abstract_params, completed, param_shapes
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import START_FROM, Workdir
from infini_jax.training.step import TrainState, first_state, initial_state

# The teacher is computed with the settings of this model, so these must be equal.
AS_THE_TEACHER = ("model.activation", "family.")


def check_start(config: Config) -> None:
  """Checks that the parameters of `config.train.start_from`, if it is set, fit this model.

  They may lack the parameters of the mixer (gates, summary embeddings) and of adapters; these get
  new values.

  Raises:
    InputError: there is no run or no checkpoint, parameters have other shapes, or the run cannot be
      the original for distillation.
  """
  if not config.train.start_from:
    return
  run = Workdir(config.train.start_from, START_FROM)
  if not (run.path / "run.json").is_file():
    raise InputError(
      f"config.train.start_from={config.train.start_from!r}: no run there; train one, or make "
      f"one from pretrained weights with infini-jax convert"
    )
  there, here = _shapes(run.config().model), _shapes(config.model)
  fresh = here.keys() - _shapes(original(config.model)).keys() - there.keys()
  for name in sorted((there.keys() | here.keys()) - fresh):
    if there.get(name) != here.get(name):
      raise InputError(
        f"config.train.start_from={config.train.start_from!r}: its parameter {name} is "
        f"{there.get(name, 'missing')}, this config's {here.get(name, 'missing')}: "
        f"set config.model as in its run.json"
      )
  model = run.config().model
  if model.width_base != config.model.width_base and model.width_ratio != config.model.width_ratio:
    raise InputError(
      f"config.model.width_base={config.model.width_base}: config.train.start_from="
      f"{config.train.start_from!r} has {model.width_base}, and its logits another factor; set "
      f"config.model.width_base={model.width_base}"
    )
  if config.train.distill_weight and not model.is_plain:
    raise InputError(
      f"config.train.distill_weight={config.train.distill_weight}: config.train.start_from="
      f"{config.train.start_from!r} has the mixer {model.title!r} and is not an original to learn "
      f"from; start from one with 'full', or set the weight to 0"
    )
  others = {
    name: there for name, there, _ in differences(config) if name.startswith(AS_THE_TEACHER)
  }
  if config.train.distill_weight and others:
    raise InputError(
      f"config.train.distill_weight={config.train.distill_weight}: the original has {others}, and "
      f"would be read by this config's; set config.model as in its run.json, or the weight to 0"
    )
  with Checkpoints(run) as saved:
    if saved.latest() is None:
      raise InputError(
        f"config.train.start_from={config.train.start_from!r}: no checkpoint there; train it first"
      )


def differences(config: Config) -> list[tuple[str, Any, Any]]:
  """The settings of the model that differ from the run that it starts from: name, there, here."""
  if not config.train.start_from:
    return []
  there, here = (_settings(c) for c in (Workdir(config.train.start_from).config(), config))
  both = (name for name in here if name in there)
  return [(name, there[name], here[name]) for name in both if there[name] != here[name]]


def _settings(config: Config) -> dict[str, Any]:
  """The settings of the model, by "section.field"."""
  m = config.model
  names = ("model", "family", *m.by_system, "adapters")
  sections = {name: config.sections()[name] for name in names}
  return {f"{name}.{k}": v for name, section in sections.items() for k, v in vars(section).items()}


def start_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """The state at step 0."""
  if not config.train.start_from:
    return initial_state(config, tx, mesh)
  key = jax.random.key(config.train.seed)
  return first_state(config, tx, completed(config.model, original_params(config, mesh), key, mesh))


def original_params(config: Config, mesh: Any) -> Any:
  """The parameters of the run that this one starts from, in this run's type, on the mesh.

  Raises:
    InputError: a parameter is not finite.
  """
  run = Workdir(config.train.start_from)
  there = run.config().model
  of_run = dataclasses.replace(there.run, param_dtype=config.model.run.param_dtype)
  model = dataclasses.replace(there, run=of_run)
  with Checkpoints(run) as saved:
    params, _ = saved.restore_params(abstract_params(model, mesh))
  _check_finite(params, config)
  return params


def _check_finite(params: Any, config: Config) -> None:
  """Raises InputError for the first parameter with a value that is not finite."""
  finite = jax.jit(lambda params: jax.tree.map(lambda x: jnp.isfinite(x).all(), params))(params)
  for path, is_finite in flatten_dict(jax.device_get(finite)).items():
    if not is_finite:
      raise InputError(
        f"config.train.start_from={config.train.start_from!r}: its parameter {'.'.join(path)} "
        f"holds values that are not finite as {config.model.run.param_dtype}; start from another "
        f"run"
      )


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model))
  return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}
