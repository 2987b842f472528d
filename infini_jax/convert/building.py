"""Output folders that appear when they are complete. Each is built under another name first."""

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from infini_jax.config import InputError
from infini_jax.files import PARTIAL, atomic_folder
from infini_jax.runs.workdir import alone

PIECE = 1 << 20  # values that are checked at a time


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
  """Yields the folder `OUT.partial`. It is renamed to OUT at the end, or removed after an error.

  Raises:
    InputError: OUT is not empty, another process writes it, or the disk is full.
  """
  out = out.absolute()
  check_free(out)
  try:
    with alone(atomic_folder(out), out) as partial:
      yield partial
  except OSError as error:
    raise InputError(
      f"{out}: cannot be written ({error.strerror or error}); make room there, or choose another "
      f"path"
    ) from None


def check_room(out: Path, size: int) -> None:
  """Raises InputError if the disk has fewer than `2 * size` bytes free.

  For a while the weights are on the disk twice. If it fills up later, `building` reports it.
  """
  free = shutil.disk_usage(out).free
  if free < 2 * size:
    raise InputError(
      f"{out}: needs {2 * size / 1e6:,.0f} MB while it is written, and {free / 1e6:,.0f} MB are "
      f"free; make room there, or choose another path"
    )


def check_free(out: Path) -> None:
  """Raises InputError if the folder to make is not empty, or its name is not allowed."""
  try:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
      raise InputError(f"{out}: exists already; choose another folder, or remove it first")
  except OSError as error:
    raise InputError(f"{out}: {error.strerror}; choose another folder") from None
  if out.name.endswith(PARTIAL):
    raise InputError(f"{out}: only unfinished folders end in {PARTIAL}; choose another name")


def lay_down(
  file: Path, layers: Iterable[tuple[str, np.ndarray]], shape: tuple[int, ...], dtype: str
) -> np.memmap:
  """Writes layers to a file one after another, and returns them as one array mapped to the file.

  The host's memory holds one layer at a time, for a model of any size.

  Args:
    file: the file to make.
    layers: the layers, each with the name of its tensor.
    shape: the shape of all layers together.
    dtype: the number type in the file.

  Raises:
    InputError: a value is not finite, or is not finite in this type.
  """
  kind = jnp.dtype(dtype)
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("wb") as opened:
    for name, layer in layers:
      with np.errstate(over="ignore", invalid="ignore"):  # check_finite reports it
        lying = np.ascontiguousarray(layer.astype(kind, copy=False))
      check_finite(name, lying, layer)
      opened.write(lying.reshape(-1).view(np.uint8).data)
  return np.memmap(file, kind, "r", shape=shape)


def check_finite(name: str, lying: np.ndarray, before: np.ndarray) -> None:
  """Raises InputError for the first value of a tensor that is not finite.

  Args:
    name: the name of the tensor.
    lying: its values as they are written, contiguous.
    before: its values as they were read, of the same shape.
  """
  flat = lying.reshape(-1)
  for start in range(0, flat.size, PIECE):
    wrong = ~np.isfinite(flat[start : start + PIECE])
    if not wrong.any():
      continue
    value = float(before[np.unravel_index(start + int(wrong.argmax()), lying.shape)])
    if math.isfinite(value):
      raise InputError(
        f"tensor {name} holds {value:g}, which is too large for {lying.dtype}; take a wider type, "
        f"or other weights"
      )
    raise InputError(
      f"tensor {name} holds {value}, so no output would be finite; take another copy, or "
      f"another checkpoint"
    )
