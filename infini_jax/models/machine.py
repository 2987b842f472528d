"""What a recorded config says of the machine that its run was made on, and what another one does.

`config.HOW_TO_RUN` names these fields of `run`; the mesh is the other part. None of them
changes what is computed, so none travels with a model: it is read, evaluated, exported anywhere.
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
from infini_jax.ops import kernels
from infini_jax.parallel.mesh import mesh_sizes


def here(config: Config, say: Callable[[str], None]) -> Config:
  """A run's config as it can be computed on these devices: what cannot be becomes `auto`.

  Args:
    config: as it was recorded, or written for another machine.
    say: takes one line about everything that was changed.
  """
  changed = []
  if reason := _why_not(config.model):
    changed.append(f"config.run.attention={config.model.run.attention!r} cannot be used ({reason})")
    config = config.with_fields(run={"attention": "auto"})
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
    InputError: they have no such attention kernel.
  """
  for stage in stages(config):
    if reason := _why_not(stage.config.model):
      raise InputError(
        f"config.run.attention={stage.config.model.run.attention!r}: {reason}; choose 'auto' or "
        f"'xla'"
      )


def _why_not(model: ModelConfig) -> str | None:
  """Why the model's attention kernel cannot be used here; None if it can."""
  if not model.memory.kernels or model.run.attention not in ("splash", "cudnn"):
    return None
  sizes, dtype = (model.segment_length, model.head_dim, model.head_dim), model.run.compute_dtype
  platform = kernels.platform()
  return kernels.why_not(
    model.run.attention, platform, *sizes, jax.numpy.dtype(dtype), model.family.attention_softcap
  )
