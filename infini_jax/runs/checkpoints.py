"""Checkpoints by Orbax: the one file that knows it."""

import contextlib
import dataclasses
import gc
import io
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorstore

from infini_jax.config import InputError
from infini_jax.quiet import quiet
from infini_jax.runs.workdir import Workdir

with quiet():
  import orbax.checkpoint as ocp

PIECE_BYTES = 8 << 20  # of a parameter, at most, in one piece: what is read of it at least
READING = {  # by tensors: one after another, as each thread would keep what it read into
  "data_copy_concurrency": {"limit": 1},
  "file_io_concurrency": {"limit": 1},
  "cache_pool#ocdbt": {"total_bytes_limit": PIECE_BYTES},
}


class Checkpoints:
  """Saves in the background, keeps the last few, restores onto any mesh.

  Use it in a `with` statement, or `close` it: that waits for the last save.

  Args:
    workdir: of the run.
    keep: how many. Who saves says so, and clears away what a save that was killed has left.
  """

  def __init__(self, workdir: Workdir, keep: int | None = None):
    self._folder = workdir.path / "checkpoints"
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=False, cleanup_tmp_directories=keep is not None
    )
    self._manager = None
    self._options = options
    self._context = tensorstore.Context(READING)
    self._background = contextlib.ExitStack()  # holds what lasts from the first save to the close
    self._saved = False

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
      self.close()

  def latest(self) -> int | None:
    """The newest step that was saved whole, or None."""
    with quiet():
      return self._open().latest_step() if self._folder.exists() else None

  def save(self, step: int, state: Any) -> None:
    """Starts to save; returns before the files are written. A step is saved once.

    Raises:
      InputError: the disk is full, here or of the save before.
    """
    with self._writing():
      self._folder.mkdir(parents=True, exist_ok=True)
      if step in self._open().all_steps():
        return
      self._check_room(sum(x.nbytes for x in jax.tree.leaves(state)))
      params = ocp.args.StandardSave(state.params, save_args=_in_pieces(state.params))
      rest = ocp.args.StandardSave(_rest(state))
      if not self._saved:
        self._background.enter_context(quiet())
        self._saved = True
      self._open().save(step, args=ocp.args.Composite(params=params, rest=rest))

  def restore(self, step: int, abstract: Any) -> Any:
    """The whole state of a step, laid out as `abstract` says."""
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(abstract.params),
      rest=ocp.args.StandardRestore(_rest(abstract)),
    )
    with self.reading(step):
      saved = self._open().restore(step, args=args)
    return type(abstract)(params=saved.params, **saved.rest)

  def restore_params(self, abstract: Any, step: int | None = None) -> tuple[Any, int]:
    """The parameters alone, for evaluation and generation, and the step they are of.

    Raises:
      InputError: there is no checkpoint, or not of that step.
    """
    newest = self.latest()
    if newest is None:
      which = "" if step is None else f" of step {step}"
      raise InputError(f"{self._folder}: no checkpoint{which}")
    step = newest if step is None else step
    if not (self._folder / str(step)).exists():
      there = ", ".join(map(str, sorted(self._open().all_steps())))
      raise InputError(f"{self._folder}: no checkpoint of step {step}; choose one of {there}")
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    with self.reading(step):
      return self._open().restore(step, args=args).params, step

  def save_params(self, params: Any) -> None:
    """Saves parameters alone, as those of step 0, and waits until they are written.

    They may be numpy arrays that lie in files, larger than the memory: Orbax would copy them, and
    hold what it has encoded, so they are written in place and in pieces, each to a file of its own.

    Raises:
      InputError: the disk is full.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    in_place = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, in_place))
    with self._writing():
      handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
      manager = ocp.CheckpointManager(
        self._folder, options=self._options, item_handlers={"params": handler}
      )
      with contextlib.closing(manager):
        saved = ocp.args.PyTreeSave(params, save_args=_in_pieces(params))
        manager.save(0, args=ocp.args.Composite(params=saved))

  def stored(self, path: str, step: int) -> tensorstore.TensorStore:
    """One parameter of a step, by its path with points: what is sliced and read of it is read."""
    folder = self._folder / str(step) / "params"
    together = ocp.type_handlers.is_ocdbt_checkpoint(folder)
    info = ocp.type_handlers.ParamInfo(name=path, parent_dir=folder)
    spec = ocp.type_handlers.get_json_tspec_read(info, together)
    return tensorstore.open(spec, open=True, context=self._context).result()

  @contextlib.contextmanager
  def reading(self, step: int) -> Iterator[None]:
    """Says so where a file is missing or cut short: a training removes what newer ones follow.

    Raises:
      InputError: what is done in here met one.
    """
    try:
      with quiet(), _held_back():
        yield
    except Exception as error:
      if type(error) not in (Exception, KeyError, ValueError):  # which Orbax and TensorStore raise
        raise
      reason = " ".join(str(error.__cause__ or error).split()).partition(" [")[0]
      error.__cause__ = error.__context__ = error.__traceback__ = None
      _settle()
      raise InputError(
        f"{self._folder / str(step)}: damaged, removed, or of another model ({reason[:300]}); "
        f"choose another step, put a copy there, or remove it: training goes on from the one before"
      ) from None

  def close(self) -> None:
    """Waits for the last save.

    Raises:
      InputError: the disk is full.
    """
    manager, self._manager, self._saved = self._manager, None, False
    if manager is not None:
      with self._background, self._writing():
        manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says so in one line where what is done in here, or still behind it, meets a full disk."""
    try:
      with quiet(), _held_back():
        yield
    except InputError:
      raise
    except (OSError, ValueError) as error:
      _settle()
      text = " ".join(str(error).split()).partition(" [os_error")[0].rpartition(": ")[2]
      reason = getattr(error, "strerror", None) or text
      raise InputError(
        f"{self._folder}: cannot be written ({reason}); make room there, or choose another place"
      ) from None

  def _check_room(self, size: int) -> None:
    """Else the run would hear of it at the next save, and all steps until then be lost."""
    free = shutil.disk_usage(self._folder).free
    if free < size:
      raise InputError(
        f"{self._folder}: a checkpoint needs {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
        f"free; make room there, and the same command goes on from the one before"
      )

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(self._folder, options=self._options)
    return self._manager


def _rest(state: Any) -> dict[str, Any]:
  """All of a train state but the parameters, which evaluation and generation restore alone."""
  fields = dataclasses.fields(state)
  return {field.name: getattr(state, field.name) for field in fields if field.name != "params"}


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
  """Where something fails, TensorStore's threads print their stacks: standard error is passed on
  only once nothing has."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    yield
  sys.stderr.write(said.getvalue())


def _settle() -> None:
  """Lets the other threads meet what failed: each of them would print its stack in the end."""
  with quiet(), contextlib.redirect_stderr(io.StringIO()):
    time.sleep(1)
    gc.collect()


def _in_pieces(params: Any) -> Any:
  """How parameters are divided in a checkpoint: large ones that are stacked, into layers first."""

  def pieces(path, x):
    stacked = path[0].key == "blocks" and x.nbytes > PIECE_BYTES
    return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=(0,) if stacked else ())

  return jax.tree.map_with_path(pieces, params)
