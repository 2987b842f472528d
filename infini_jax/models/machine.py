"""The settings of a recorded config that depend on its machine, and their use on another one.

`config.HOW_TO_RUN` names these fields of `run`; the mesh is the other part. None of them
changes what is computed, so none is saved with a model: it is read, evaluated, exported anywhere.
The types of numbers do change it: a model that was trained in bfloat16 stays in bfloat16.
"""

import dataclasses
from collections.abc import Callable

import jax

from infini_jax.config import (
  HOW_TO_RUN,
  Config,
  InputError,
  MeshConfig,
  ModelConfig,
  RunConfig,
  stages,
)
from infini_jax.ops import kernels, memory_kernels
from infini_jax.parallel.mesh import mesh_sizes

# The choice of plain JAX.
PLAIN = {"attention": "xla", "implementation": "parallel"}


def here(config: Config, say: Callable[[str], None]) -> Config:
  """A run's config as it can be computed on these devices: what cannot be becomes `auto`.

  Args:
    config: as it was recorded, or written for another machine.
    say: takes one line about everything that was changed.
  """
  changed = []
  for name, reason in _cannot(config.model).items():
    was = getattr(config.model.run, name)
    changed.append(f"config.run.{name}={was!r} cannot be used ({reason})")
    config = config.with_fields(run={name: "auto"})
  try:
    mesh_sizes(config.mesh, jax.device_count())
  except InputError as error:
    changed.append(str(error).partition(":")[0])
    config = dataclasses.replace(config, mesh=MeshConfig())
  if changed:
    say(f"{'; '.join(changed)}: auto instead, which computes the same")
  return config


def elsewhere(config: Config) -> Config:
  """A run's config without the settings of the machine that it was made on."""
  usual = {name: getattr(RunConfig, name) for name in HOW_TO_RUN}
  return dataclasses.replace(config.with_fields(run=usual), mesh=MeshConfig())


def check_machine(config: Config) -> None:
  """Makes sure that these devices can train as a config says.

  Raises:
    InputError: they have no such kernels.
  """
  for stage in stages(config):
    for name, reason in _cannot(stage.config.model).items():
      was = getattr(stage.config.model.run, name)
      raise InputError(f"config.run.{name}={was!r}: {reason}; choose 'auto' or {PLAIN[name]!r}")


def _cannot(model: ModelConfig) -> dict[str, str]:
  """The fields of `run` whose kernels cannot be used here, and why."""
  run, on = model.run, kernels.platform()
  N, E = model.segment_length, model.head_dim
  reasons: dict[str, str | None] = {}
  if model.memory.kernels and run.attention in ("splash", "cudnn"):
    more = jax.numpy.dtype(run.compute_dtype), model.family.attention_softcap
    reasons["attention"] = kernels.why_not(run.attention, on, N, E, E, *more)
  if model.memory.matrix and run.implementation == "kernels":
    reasons["implementation"] = (
      "a CPU only interprets them" if on == "cpu" else memory_kernels.why_not(on, N, E, E)
    )
  return {name: reason for name, reason in reasons.items() if reason}
