"""Checkpoints by Orbax: the one file that knows it."""

import dataclasses
from typing import Any

import orbax.checkpoint as ocp
from absl import logging as absl_logging

from infini_jax.config import InputError
from infini_jax.runs.workdir import Workdir

absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax narrates every save


class Checkpoints:
  """Saves in the background, keeps the last few, restores onto any mesh."""

  def __init__(self, workdir: Workdir, keep: int = 1):
    self._folder = workdir.path / "checkpoints"
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
    self._manager = None
    self._options = options

  def latest(self) -> int | None:
    """The newest step that was saved whole, or None."""
    return self._open().latest_step() if self._folder.exists() else None

  def save(self, step: int, state: Any) -> None:
    """Starts to save; returns before the files are written. A step is saved once."""
    self._folder.mkdir(parents=True, exist_ok=True)
    if step in self._open().all_steps():
      return
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(_rest(state))
    )
    self._open().save(step, args=args)

  def restore(self, step: int, abstract: Any) -> Any:
    """The whole state of a step, laid out as `abstract` says."""
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(abstract.params),
      rest=ocp.args.StandardRestore(_rest(abstract)),
    )
    saved = self._open().restore(step, args=args)
    return type(abstract)(params=saved.params, **saved.rest)

  def restore_params(self, abstract: Any, step: int | None = None) -> tuple[Any, int]:
    """The parameters alone, for evaluation and generation, and the step they are of.

    Raises:
      InputError: there is no checkpoint, or not of that step.
    """
    step = self.latest() if step is None else step
    if step is None or not (self._folder / str(step)).exists():
      raise InputError(f"{self._folder}: no checkpoint{'' if step is None else f' of step {step}'}")
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return self._open().restore(step, args=args).params, step

  def close(self) -> None:
    """Waits for the last save."""
    if self._manager is not None:
      self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(self._folder, options=self._options)
    return self._manager


def _rest(state: Any) -> dict[str, Any]:
  """All of a train state but the parameters, which evaluation and generation restore alone."""
  fields = dataclasses.fields(state)
  return {field.name: getattr(state, field.name) for field in fields if field.name != "params"}
