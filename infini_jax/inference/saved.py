"""Runs opened for inference, and the files of saved states.

The file of a state is a safetensors file. It holds the stream, the unread tokens, the last tokens,
and a header with the model and the vocabulary. Slots of the open segment without a token are left
out, so that the file is small if a segment has just begun. A checksum of the whole file shows
whether it is damaged; files of format 1 have no checksum.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from infini_jax.config import Config, InputError, difference, migrated, resolve
from infini_jax.data import Tokenizer
from infini_jax.inference.chat import Told
from infini_jax.inference.engine import Engine
from infini_jax.inference.lane import Lane
from infini_jax.models import machine, param_shapes
from infini_jax.ops.attention import Segment
from infini_jax.paths import local
from infini_jax.runs import tensors
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir

KIND, FORMAT = "infini_jax state ", 2  # the name of the header: the kind and the format
BEGINS = rb'.{8}\{"__metadata__":\{"' + KIND.encode()  # a pattern: the file's first bytes
FIELDS = {  # fields of the header; the last three have an entry for each lane
  "config": dict,
  "parameters": str,
  "tokenizer": str,
  "workdir": str,
  "step": int,
  "position": list,
  "unread": list,
  "recent": list,
}
# The names of the arrays of a stream before each system's stream was `mixers.base.Stream`.
FORMER = (
  (r"\bstate\.xl\.", "xl.last."),
  (r"\bstate\.store\.(k|v|document)_BJ", r"store.\1_BM"),
  (r"\bstate\.store\.", "store."),
  (r"\bstate\.", "last."),
  (r"\bstate\.", "old."),
  (r"\bcache\.x_BNI", "x_BNI"),
  (r"\bcache\.", "xl.cache."),
)
SLOTS = 2  # the axis of a stacked stream that may be shorter in the file: (L, B, slots...)


class OpenedRun(NamedTuple):
  """A model opened for inference; `workdir` is empty if it does not come from a run."""

  engine: Engine
  tokenizer: Tokenizer
  workdir: str = ""
  step: int = 0
  ema: bool = False


def open_run(path: str | Path, step: int | None = None, ema: bool = False) -> OpenedRun:
  """The model of a workdir, on one device, with the settings of this machine.

  Args:
    path: the workdir.
    step: the step of the checkpoint; None: the newest.
    ema: takes the moving average of the parameters, not their last values.

  Raises:
    InputError: there is no run, no such checkpoint, or no average in it.
  """
  workdir = Workdir(path)
  tokenizer = workdir.load_tokenizer()
  config = machine.elsewhere(workdir.config())
  here = SingleDeviceSharding(jax.local_devices()[0])
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
  with Checkpoints(workdir) as saved:
    params, step = saved.restore_params(jax.tree.map(place, param_shapes(config.model)), step, ema)
  return OpenedRun(Engine(config, params), tokenizer, str(workdir.path), step, ema)


def save(
  path: Path, run: OpenedRun, stream: Any, lanes: Sequence[Lane], told: Told | None = None
) -> None:
  """Writes the file of a state, completely or not at all.

  Raises:
    InputError: the file cannot be written.
  """
  arrays = _named(jax.tree.map(_filled, stream, is_leaf=_is_cache))
  for name in ("unread", "recent"):
    arrays[name] = np.concatenate([np.array(getattr(x, name), np.int32) for x in lanes])
  header = {
    "config": json.loads(run.engine.config.to_json()),
    "parameters": run.engine.checksum,
    "tokenizer": run.tokenizer.fingerprint,
    "workdir": run.workdir,
    "step": run.step,
    "ema": run.ema,
    "position": [lane.position for lane in lanes],
    "unread": [len(lane.unread) for lane in lanes],
    "recent": [len(lane.recent) for lane in lanes],
  }
  if told is not None:
    header["chat"] = list(told)
  text = json.dumps(header)  # one entry, so that equal states give equal bytes
  tensors.save(path, arrays, {f"{KIND}{FORMAT}": text}, checksum=True)


def load(
  path: Path, model: OpenedRun | str | Path | None, step: int | None
) -> tuple[OpenedRun, Any, list[Lane], Told | None]:
  """Loads a state. Returns its run, its stream, its lanes, and the conversation that it holds.

  The run is that of `model` (an open run or a path), else that of the header.

  Raises:
    InputError: the file is not a state, is damaged, or is of another model or vocabulary.
  """
  file = tensors.Tensors(path)
  header = _header(file)
  if isinstance(model, OpenedRun):
    run = model
    _check(path, header, run.engine.config, run.tokenizer)
  else:
    at = header["workdir"]
    if model is None and not (at and Path(at).is_dir()):
      raise InputError(f"{path}: its run is not at {at!r}; give its path (--workdir, model=)")
    workdir = Workdir(model or at)
    _check(path, header, workdir.config(), workdir.load_tokenizer())
    try:
      step = header["step"] if step is None else step
      run = open_run(workdir.path, step, bool(header.get("ema")))
    except InputError as error:
      raise InputError(f"{path}: {error}; a run keeps more by train.keep_checkpoints") from None
  if header["parameters"] != run.engine.checksum:
    raise InputError(
      f"{path}: a state of other parameters than {run.workdir or 'this model'} has at step "
      f"{run.step}; give the run that it is of: {header['workdir']}, step {header['step']}"
    )
  with _whole(path):
    lanes = _lanes(file, header, run.engine.segment)
    told = Told(*header["chat"]) if "chat" in header else None
    return run, _stream(file, run.engine.template(len(lanes))), lanes, told


def config_of(path: str | Path) -> Config | None:
  """The config of the run that a state names; None if it cannot be found, which `load` reports."""
  try:
    found = tensors.Tensors(local(path)).metadata.items()
    (header,) = [json.loads(text) for name, text in found if name.startswith(KIND)]
    return Workdir(header["workdir"]).config_here()
  except (InputError, KeyError, OSError, TypeError, ValueError):
    return None


def _header(file: tensors.Tensors) -> dict[str, Any]:
  """The header of a state; raises InputError if there is none, or it is damaged or too new."""
  if tensors.CHECKSUM in file.shapes:
    file.check()
  made = [name.removeprefix(KIND) for name in file.metadata if name.startswith(KIND)]
  if not made:
    raise InputError(
      f"{file.path}: holds no state; give a file that `save` or --save-state has written"
    )
  if made[0] not in map(str, range(1, FORMAT + 1)):
    raise InputError(f"{file.path}: a state of format {made[0]}; update infini_jax to read it")
  with _whole(file.path):
    if made[0] != "1" and tensors.CHECKSUM not in file.shapes:
      raise ValueError("no checksum")
    header = json.loads(file.metadata[KIND + made[0]])
    for name, kind in FIELDS.items():
      if not isinstance(header[name], kind):
        raise TypeError(f"{name}={header[name]!r}")
    return header


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
  """Converts errors in the body to an error of a damaged file; format 1 has no checksum."""
  try:
    yield
  except InputError:
    raise
  except (ArithmeticError, LookupError, TypeError, ValueError) as error:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise InputError(f"{path}: damaged ({text}); copy or make it again") from None


def _lanes(file: tensors.Tensors, header: dict[str, Any], segment: int) -> list[Lane]:
  lanes = [Lane() for _ in header["position"]]
  for name in ("unread", "recent"):
    parts = np.split(file.read(name), np.cumsum(header[name])[:-1])
    for lane, part in zip(lanes, parts, strict=True):
      getattr(lane, name).extend(part.tolist())
  for lane, position in zip(lanes, header["position"], strict=True):
    lane.read = position - len(lane.unread)
    opened, known = lane.read % segment, [*lane.recent][: len(lane.recent) - len(lane.unread)]
    lane.open = known[len(known) - opened :] if opened <= len(known) else None
  return lanes


def _check(path: Path, header: dict[str, Any], config: Config, tokenizer: Tokenizer) -> None:
  """Raises InputError if a state is of another model, without reading a parameter."""
  try:
    made = dataclasses.replace(config, model=resolve(migrated(header["config"])).model)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None
  if other := difference(made, config):
    raise InputError(
      f"{path}: a state of another model ({other}); give the run that it was made with"
    )
  if header["tokenizer"] != tokenizer.fingerprint:
    raise InputError(f"{path}: a state of another tokenizer; give the run that it was made with")


def _is_cache(x: Any) -> bool:
  return isinstance(x, Segment)


def _filled(x: Any) -> Any:
  """The slots of an open segment that hold a token in any lane; 0 in lanes without a token."""
  if not _is_cache(x):
    return x
  fill_LB = np.asarray(x.fill_B)
  live_LBN = np.arange(fill_LB.max()) < fill_LB[..., None]
  N, live = live_LBN.shape[SLOTS], live_LBN[..., None, None]
  cut = lambda slots: np.where(live, np.asarray(slots)[:, :, :N], np.zeros((), slots.dtype))
  k_BNKE, v_BNKU = cut(x.k_BNKE), cut(x.v_BNKU)
  return x._replace(k_BNKE=k_BNKE, v_BNKU=v_BNKU)


def _named(stream: Any) -> dict[str, np.ndarray]:
  pairs, _ = jax.tree_util.tree_flatten_with_path(stream)
  return {_name(path): np.asarray(x) for path, x in pairs}


def _name(path: Any) -> str:
  return f"stream.{jax.tree_util.keystr(path, simple=True, separator='.')}"


def _stream(file: tensors.Tensors, template: Any) -> Any:
  def one(path, want):
    name = _name(path)
    names = [name, *(re.sub(now, before, name, count=1) for now, before in FORMER)]
    name = next((x for x in names if x in file.shapes), name)
    array, fixed = file.read(name), [i for i in range(want.ndim) if i != SLOTS]
    there, here = ([x.dtype, x.ndim, *(x.shape[i] for i in fixed)] for x in (array, want))
    if there != here:
      raise ValueError(f"{name} is {array.dtype}{array.shape}")
    missing = max(0, want.shape[SLOTS] - array.shape[SLOTS]) if array.ndim > SLOTS else 0
    padding = [(0, missing if axis == SLOTS else 0) for axis in range(array.ndim)]
    return jnp.array(np.pad(array, padding))

  return jax.tree_util.tree_map_with_path(one, template)
