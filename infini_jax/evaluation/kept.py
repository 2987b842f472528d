"""The progress of a long evaluation on disk, so that it can continue after a stop.

Each variant of a job has a file. A variant that is done keeps its file until the whole job is done.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import InputError
from infini_jax.runs import tensors

SECONDS = 60.0  # between two saves: the most time that a stop loses
SAVING = 0.05  # the most of the time that saving may take; a large state is saved less often


class Found(NamedTuple):
  """The saved progress."""

  arrays: dict[str, np.ndarray]
  facts: dict[str, Any]  # with `done`, the number of chunks read


class Kept:
  """A file with the progress of an evaluation.

  Args:
    file: the path of the file; None saves nothing.
    of: a short hash of the evaluation; the progress of another evaluation is ignored.
    seconds: the time between two saves.
  """

  def __init__(self, file: Path | None = None, of: str = "", seconds: float = SECONDS):
    self._file, self._of, self._seconds = file, of, seconds
    self._last = time.monotonic()

  def load(self) -> Found | None:
    """The saved progress of this evaluation; None if there is none, or the file is damaged."""
    if self._file is None or not self._file.is_file():
      return None
    try:
      file = tensors.Tensors(self._file)
      file.check()
    except InputError:
      return None
    if file.metadata.get("of") != self._of:
      return None
    names = (name for name in file.shapes if name != tensors.CHECKSUM)
    return Found({name: file.read(name) for name in names}, json.loads(file.metadata["facts"]))

  @property
  def done(self) -> int:
    """The number of chunks that need not be read again."""
    found = self.load()
    return found.facts["done"] if found else 0

  @property
  def saves(self) -> bool:
    """Whether progress is saved at all."""
    return self._file is not None

  @property
  def due(self) -> bool:
    """Whether it is time to save."""
    return self.saves and time.monotonic() - self._last >= self._seconds

  def save(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Replaces the saved progress."""
    assert self._file is not None
    about, started = {"of": self._of, "facts": json.dumps(facts)}, time.monotonic()
    tensors.save(self._file, arrays, about, checksum=True)
    self._last = time.monotonic()
    if self._seconds:
      self._seconds = max(self._seconds, (self._last - started) / SAVING)

  def clear(self) -> None:
    """Removes the file: the job is done."""
    if self._file is not None:
      self._file.unlink(missing_ok=True)


def sums(params: Any) -> str:
  """A hash of the parameters, independent of their layout on one mesh."""
  return " ".join(float(x).hex() for x in jax.tree.leaves(_each(params)))


@jax.jit
def _each(params: Any) -> Any:
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return jax.tree.map(lambda x: (x.sum(), (x * x).sum()), wide)
