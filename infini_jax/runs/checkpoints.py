"""Checkpoints with Orbax; the only file that imports it.

A checkpoint has a digest of each of its files, which is written before the checkpoint counts as
complete. Everything that reads a checkpoint compares them first.
"""

import contextlib
import dataclasses
import gc
import io
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict

from infini_jax import digests
from infini_jax.config import InputError
from infini_jax.files import move_into
from infini_jax.quiet import quiet
from infini_jax.runs.workdir import Workdir

with quiet():
  import orbax.checkpoint as ocp

LOGGER = logging.getLogger("infini_jax")
BLOCK_BYTES = 8 << 20  # the most bytes of one stored block of a parameter; reads load whole blocks
SETTLING = 1.0  # seconds until the other threads of a failed read or write have failed too
EMA = "ema"  # the moving average of the parameters: a field of the state, a folder, a flag
METADATA = "_CHECKPOINT_METADATA"  # Orbax writes into it after the checkpoint is complete
NOT_OF_FILES = (InputError, MemoryError, jax.errors.JaxRuntimeError)
READING = {  # one tensor at a time, because each thread would keep its own buffer
  "data_copy_concurrency": {"limit": 1},
  "file_io_concurrency": {"limit": 1},
  "cache_pool#ocdbt": {"total_bytes_limit": BLOCK_BYTES},
}


class Checkpoints:
  """Saves checkpoints in the background, keeps the last few, and restores them onto any mesh.

  Use it in a `with` statement, or call `close`; both wait for the last save.

  Args:
    workdir: the folder of the run.
    keep: how many checkpoints to keep; None: all. If it is set, as in training, the files of a
      save that was killed are removed.
  """

  def __init__(self, workdir: Workdir, keep: int | None = None):
    self._folder, self._damaged = workdir.path / "checkpoints", workdir.path / "damaged"
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=False,
      cleanup_tmp_directories=keep is not None,
      # Orbax calls it when all files are there, before it gives the folder its name.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
    )
    self._manager = None
    self._options = options
    self._context = tensorstore.Context(READING)
    self._background = contextlib.ExitStack()  # contexts from the first save until `close`
    self._saved = self._failed = False

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
      self.close()

  def latest(self) -> int | None:
    """The newest step that was saved completely, or None."""
    return next(iter(self._newest_first()), None)

  def newest_whole(self, say: Callable[[str], None]) -> int | None:
    """The newest step whose files are as they were written; None if there is no checkpoint.

    Newer checkpoints are damaged. They are moved to the folder `damaged` of the run, because
    training will write these steps again.

    Args:
      say: takes one line about each of them.

    Raises:
      InputError: all checkpoints are damaged; none is moved.
    """
    steps = self._newest_first()
    found: dict[int, str] = {}
    for step in steps:
      if not (problem := self._problem(step)):
        break
      found[step] = problem
    if not steps or len(found) == len(steps):
      if found:
        raise InputError(
          f"{self._folder}: every checkpoint is damaged ({'; '.join(found.values())}); "
          f"put copies there, or train in another --workdir"
        )
      return None
    for damaged, problem in found.items():
      place = self._set_aside(damaged)
      say(f"warning: {problem}; moved to {place}, and step {step} is used instead")
    if found:
      self._reopen()
    return step

  def chosen(self, step: int | None = None, ema: bool = False) -> int:
    """The step to read parameters from, whose files are as they were written.

    Args:
      step: the step that was asked for; None: the newest. If this is damaged, a warning is logged,
        and it is the one before.
      ema: whether the moving average of the parameters is read.

    Raises:
      InputError: there is no checkpoint, none of this step, it is damaged, or has no average.
    """
    steps = self._newest_first()
    if not steps:
      raise InputError(f"{self._folder}: no checkpoint" + f" of step {step}" * (step is not None))
    there = ", ".join(map(str, sorted(steps)))
    if step is not None and step not in steps:
      raise InputError(f"{self._folder}: no checkpoint of step {step}; choose one of {there}")
    problem = ""
    for one in steps if step is None else [step]:
      if problem:
        LOGGER.warning(f"warning: {problem}; step {one} is used instead")
      problem = self._problem(one, "params/")
      if not problem and ema:
        if not (self._folder / str(one) / EMA).exists():
          raise InputError(
            f"{self._folder / str(one)}: holds no moving average of the parameters; leave --ema "
            f"out, or train with config.optimizer.ema, for example 0.999"
          )
        problem = self._problem(one, f"{EMA}/")
      if not problem:
        return one
    remedy = "put a copy there" if step is None else f"choose another step of {there}"
    raise InputError(f"{problem}; {remedy}")

  def save(self, step: int, state: Any) -> None:
    """Starts a save, and returns before the files are written. Each step is saved only once.

    Raises:
      InputError: the disk is full, in this save or in the one before.
    """
    with self._writing():
      self._folder.mkdir(parents=True, exist_ok=True)
      if step in self._open().all_steps():
        return
      self._check_room(sum(x.nbytes for x in jax.tree.leaves(state)))
      params = ocp.args.StandardSave(state.params, save_args=_in_blocks(state.params))
      items = {"params": params, "rest": ocp.args.StandardSave(_rest(state))}
      if state.ema is not None:
        items[EMA] = ocp.args.StandardSave(state.ema, save_args=_in_blocks(state.ema))
      if not self._saved:
        self._background.enter_context(quiet())
        self._saved = True
      self._open().save(step, args=ocp.args.Composite(**items))

  def restore(self, step: int, abstract: Any) -> Any:
    """The whole state of a step, with the shapes, types and shardings of `abstract`.

    Raises:
      InputError: the checkpoint is damaged, removed, or of another model.
    """
    parts = {"params": abstract.params, "rest": _rest(abstract)}
    parts |= {EMA: abstract.ema} if abstract.ema is not None else {}
    with self.reading(step):
      saved = self._restored(step, parts)
    ema = {EMA: saved[EMA]} if EMA in parts else {}
    return type(abstract)(params=saved["params"], **saved["rest"], **ema)

  def restore_params(
    self, abstract: Any, step: int | None = None, ema: bool = False
  ) -> tuple[Any, int]:
    """The parameters only, for evaluation and generation, and their step.

    Args:
      abstract: their shapes, types and shardings.
      step: of the checkpoint; None: the newest.
      ema: the moving average of those that were trained, instead of their last values.

    Raises:
      InputError: there is no checkpoint, none of this step, it is damaged, or has no average.
    """
    step = self.chosen(step, ema)
    wanted = flatten_dict(abstract)
    averaged = self._averaged(step) if ema else set()
    parts = {"params": abstract} if not ema or wanted.keys() - averaged else {}
    if ema:
      parts[EMA] = unflatten_dict({k: x if k in averaged else None for k, x in wanted.items()})
    with self.reading(step):
      saved = self._restored(step, parts)
    found = [flatten_dict(saved[part]) for part in parts]
    return unflatten_dict({k: x for part in found for k, x in part.items() if x is not None}), step

  def save_params(self, params: Any) -> None:
    """Saves only parameters, as step 0, and waits until they are written.

    They may be memory-mapped numpy arrays that are larger than the memory of the host. Therefore
    they are written without a copy and in blocks, each block to its own file.

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
        saved = ocp.args.PyTreeSave(params, save_args=_in_blocks(params))
        manager.save(0, args=ocp.args.Composite(params=saved))

  def stored(self, path: str, step: int, ema: bool = False) -> tensorstore.TensorStore:
    """One parameter of a step, by its path with dots, or with `ema` its moving average.

    Only the slices that you read are loaded. What was not trained has no average.
    """
    averaged = ema and tuple(path.split(".")) in self._averaged(step)
    folder = self._folder / str(step) / (EMA if averaged else "params")
    together = ocp.type_handlers.is_ocdbt_checkpoint(folder)
    info = ocp.type_handlers.ParamInfo(name=path, parent_dir=folder)
    spec = ocp.type_handlers.get_json_tspec_read(info, together)
    return tensorstore.open(spec, open=True, context=self._context).result()

  @contextlib.contextmanager
  def reading(self, step: int) -> Iterator[None]:
    """Converts an error of reading in the body to one line; training removes old checkpoints.

    Raises:
      InputError: a file of the checkpoint is missing, damaged or of another model.
    """
    try:
      with quiet(), _held_back():
        yield
    except Exception as error:
      # Without digests, of an older program, damage may end in any error of the code that reads.
      sealed = digests.is_sealed(self._folder / str(step)) or isinstance(error, NOT_OF_FILES)
      if sealed and type(error) not in (Exception, KeyError, ValueError):  # Orbax, TensorStore
        raise
      reason = " ".join(str(error.__cause__ or error).split()).partition(" [")[0]
      error.__cause__ = error.__context__ = error.__traceback__ = None
      _settle()
      raise InputError(
        f"{self._folder / str(step)}: damaged, removed, or of another model ({reason[:300]}); "
        f"choose another step, put a copy there, or remove it: training then continues before it"
      ) from None

  def wait(self) -> None:
    """Waits until the last save is complete.

    Raises:
      InputError: the disk is full.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save, and releases the manager.

    Raises:
      InputError: the disk is full.
    """
    manager, self._manager, self._saved = self._manager, None, False
    with self._background:
      if manager is not None:
        with self._writing():
          manager.close()
      if self._failed:
        _settle()  # objects of a failed save print errors when they are collected

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Converts an error of writing, in the body or in an unfinished save, to an InputError."""
    try:
      with quiet(), _held_back():
        yield
    except InputError:
      raise
    except (OSError, ValueError) as error:
      self._failed = True
      manager, self._manager = self._manager, None  # a new one removes what was not finished
      with contextlib.suppress(Exception):
        if manager is not None:
          manager.close()
      _settle()
      text = " ".join(str(error).split()).partition(" [os_error")[0].rpartition(": ")[2]
      reason = getattr(error, "strerror", None) or text
      raise InputError(
        f"{self._folder}: cannot be written ({reason}); make room there, or choose another path"
      ) from None

  def _restored(self, step: int, parts: dict[str, Any]) -> Any:
    """Some items of a checkpoint, by their names."""
    args = {name: ocp.args.StandardRestore(abstract) for name, abstract in parts.items()}
    return self._open().restore(step, args=ocp.args.Composite(**args))

  def _averaged(self, step: int) -> set[tuple[str, ...]]:
    """The paths of the parameters that have a moving average."""
    with self.reading(step):
      tree = ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / EMA).tree
    return {path for path, x in flatten_dict(tree).items() if x is not None}

  def _check_room(self, size: int) -> None:
    """Raises InputError now; Orbax reports a full disk at the next save only, many steps later."""
    free = shutil.disk_usage(self._folder).free
    if free < size:
      raise InputError(
        f"{self._folder}: a checkpoint needs {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
        f"free; make room there, and the same command continues from the one before"
      )

  def _newest_first(self) -> list[int]:
    """The steps on the disk. Orbax's manager is not used: all processes would have to open it."""
    with quiet():
      steps = ocp.utils.checkpoint_steps(self._folder) if self._folder.exists() else []
    return sorted(steps, reverse=True)

  def _seal(self) -> None:
    """Writes the digests of the checkpoint that is being saved."""
    unfinished = self._folder.glob("*.orbax-checkpoint-tmp*")  # older ones were killed
    newest = max(unfinished, key=lambda folder: folder.stat().st_mtime_ns)
    digests.seal(newest, without=(METADATA,))

  def _problem(self, step: int, within: str = "") -> str:
    """One line about a step whose files differ from their digests; empty: nothing differs.

    Checkpoints of older programs have no digests, and are not compared.
    """
    folder = self._folder / str(step)
    if not digests.is_sealed(folder):
      return ""
    found = digests.problems(folder, within)
    return f"{folder}: damaged ({digests.in_one_line(found)})" if found else ""

  def _set_aside(self, step: int) -> Path:
    """Moves a checkpoint to a free name in the folder `damaged` of the run."""
    return move_into(self._folder / str(step), self._damaged)

  def _reopen(self) -> None:
    """Makes Orbax list the folder again."""
    manager, self._manager = self._manager, None
    if manager is not None:
      with quiet():
        manager.close()

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(self._folder, options=self._options)
    return self._manager


def _rest(state: Any) -> dict[str, Any]:
  """All fields of a train state but parameters, which can be restored without the others."""
  names = [field.name for field in dataclasses.fields(state) if field.name not in ("params", EMA)]
  rest = {name: getattr(state, name) for name in names}
  # Older checkpoints lack this field, so it is there only if it is used.
  return {name: value for name, value in rest.items() if name != "norm" or value is not None}


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
  """Writes the body's standard error if it succeeds; else it is the stacks of TensorStore."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    yield
  sys.stderr.write(said.getvalue())


def _settle() -> None:
  """Waits for the other threads, and drops the stacks that they print."""
  with quiet(), contextlib.redirect_stderr(io.StringIO()):
    time.sleep(SETTLING)
    gc.collect()


def _in_blocks(params: Any) -> Any:
  """How parameters are divided in a checkpoint; large stacked ones are divided by layers first."""

  def blocks(path, x):
    stacked = path[0].key == "blocks" and x.nbytes > BLOCK_BYTES
    return ocp.SaveArgs(chunk_byte_size=BLOCK_BYTES, shard_axes=(0,) if stacked else ())

  return jax.tree.map_with_path(blocks, params)
