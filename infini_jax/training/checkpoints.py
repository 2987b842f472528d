"""Checkpoints by Orbax, and what a workdir holds: the one file that knows either.

A workdir is whole by itself:

  run.json         the config of the run and the fingerprint of its corpus
  tokenizer/       the vocabulary
  checkpoints/N/   the state after N updates: `params`, and `rest` (optimizer, memory, step)
  metrics.jsonl    one line per log, beside tensorboard/
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from infini_jax import config as config_lib
from infini_jax.config import Config, InputError

absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax narrates every save


class Workdir:
  """The folder of one run."""

  def __init__(self, path: str | Path):
    self.path = Path(path).absolute()

  @property
  def tokenizer(self) -> Path:
    """Where the run keeps its vocabulary."""
    return self.path / "tokenizer"

  @property
  def store(self) -> Path:
    """Where a corpus is prepared that was not prepared beforehand."""
    return self.path / "store"

  def check(self, config: Config) -> None:
    """Makes sure that the folder is free, or holds a run of this config.

    Raises:
      InputError: it holds another config's run.
    """
    run = self._run()
    if run is None and (self.path / "checkpoints").exists():
      raise InputError(f"{self.path}: holds checkpoints but no run.json; choose another --workdir")
    if run is not None and (difference := config_lib.difference(run["config"], config)):
      raise InputError(
        f"{self.path} holds the run of another config ({difference}): "
        f"choose another --workdir, or set the field back"
      )

  def claim(self, config: Config, corpus: str) -> None:
    """Writes down whose folder this is.

    Raises:
      InputError: it holds another config's run, or one on another corpus.
    """
    self.check(config)
    run = self._run()
    if run is not None and corpus != run["corpus"]:
      raise InputError(
        f"{self.path} holds a run on another corpus: choose another --workdir, "
        f"or set config.data.path back"
      )
    self.path.mkdir(parents=True, exist_ok=True)
    content = {"config": json.loads(config.to_json()), "corpus": corpus}
    file = self.path / "run.json"
    if jax.process_index() == 0:
      file.with_suffix(".tmp").write_text(json.dumps(content, indent=2) + "\n")
      file.with_suffix(".tmp").replace(file)

  def config(self) -> Config:
    """The config that the run was last started with.

    Raises:
      InputError: there is no run here.
    """
    run = self._run()
    if run is None:
      raise InputError(f"{self.path}: no run here; train first with --workdir={self.path}")
    return run["config"]

  def _run(self) -> dict[str, Any] | None:
    file = self.path / "run.json"
    if not file.exists():
      return None
    try:
      run = json.loads(file.read_text())
      return {"config": config_lib.resolve(run["config"]), "corpus": run["corpus"]}
    except (ValueError, KeyError) as error:
      raise InputError(f"{file}: cannot be read ({error}); choose another --workdir") from None


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
    rest = {"step": state.step, "opt_state": state.opt_state, "memory": state.memory}
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest)
    )
    self._open().save(step, args=args)

  def restore(self, step: int, abstract: Any) -> Any:
    """The whole state of a step, laid out as `abstract` says."""
    rest = {"step": abstract.step, "opt_state": abstract.opt_state, "memory": abstract.memory}
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(abstract.params), rest=ocp.args.StandardRestore(rest)
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
