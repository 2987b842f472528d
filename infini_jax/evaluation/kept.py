"""How far a long evaluation has come, on disk, so that it can be stopped and goes on."""

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

SECONDS = 60.0  # between two writings: what a stop may cost


class Found(NamedTuple):
  """What was kept."""

  arrays: dict[str, np.ndarray]
  facts: dict[str, Any]  # among them `done`, the chunks read


class Kept:
  """One file, which is there only while an evaluation is not done.

  Args:
    file: where; None keeps nothing.
    of: of what, a short hash; what was kept of anything else is not found.
    seconds: between two writings.
  """

  def __init__(self, file: Path | None = None, of: str = "", seconds: float = SECONDS):
    self._file, self._of, self._seconds = file, of, seconds
    self._last = time.monotonic()

  def load(self) -> Found | None:
    """What the same evaluation kept; None if it kept nothing, or not wholly."""
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
    """Chunks that need not be read again."""
    found = self.load()
    return found.facts["done"] if found else 0

  @property
  def due(self) -> bool:
    """Whether it is time to save."""
    return self._file is not None and time.monotonic() - self._last >= self._seconds

  def save(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Replaces what was kept."""
    assert self._file is not None
    about = {"of": self._of, "facts": json.dumps(facts)}
    tensors.save(self._file, arrays, about, checksum=True)
    self._last = time.monotonic()

  def clear(self) -> None:
    """Removes the file: the evaluation is done."""
    if self._file is not None:
      self._file.unlink(missing_ok=True)


def sums(params: Any) -> str:
  """What tells parameters from others, however they are laid out on one mesh."""
  return " ".join(float(x).hex() for x in jax.tree.leaves(_each(params)))


@jax.jit
def _each(params: Any) -> Any:
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return jax.tree.map(lambda x: (x.sum(), (x * x).sum()), wide)
