"""Checks of a caller's arguments, which convert numbers to Python's own types.

NumPy scalars are accepted. A bool, a text or an array is never accepted as a number, and a fraction
is not accepted as a whole number.
"""

import numbers
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.config import InputError
from infini_jax.paths import local

LARGEST = 2**31 - 1  # of counts; a larger number is a mistake
LARGEST_SEED = 2**32 - 1


def whole(name: str, value: Any, least: int = 0, most: int = LARGEST, low: str = "") -> int:
  """The value as a whole number from `least` to `most`.

  Raises:
    InputError: any other value. `low` replaces the text about the least value.
  """
  low = low or f"at least {least}"
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise InputError(f"{name}={short(value)}: must be a whole number, {low}")
  if not least <= int(value) <= most:
    raise InputError(f"{name}={value}: must be {low if value < least else f'at most {most}'}")
  return int(value)


def number(name: str, value: Any) -> float:
  """The value as a real number; the caller checks its bounds, infinity and NaN.

  Raises:
    InputError: any other value.
  """
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise InputError(f"{name}={short(value)}: must be a number")
  try:
    return float(value)
  except OverflowError:  # a whole number with hundreds of digits
    return float("inf")


def seeds(value: Any, lanes: int) -> np.ndarray:
  """One seed for each lane, (B,) uint32: the given seeds, or seed + i for lane i.

  Raises:
    InputError: not whole numbers from 0 to 2^32 - 1, or not one for each lane.
  """
  several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
  if not (several or (isinstance(value, np.ndarray) and value.ndim)):
    first = whole("seed", value, most=LARGEST_SEED)
    return np.array([(first + i) % 2**32 for i in range(lanes)], np.uint32)
  if len(value) != lanes:
    raise InputError(f"seed={short(value)}: a session of {lanes} lanes takes one seed, or {lanes}")
  return np.array([whole("seed", one, most=LARGEST_SEED) for one in value], np.uint32)


def stops(value: Any) -> tuple[str, ...]:
  """One or several stop strings, as a tuple.

  Raises:
    InputError: one of them is not a text, or is empty.
  """
  several = value if isinstance(value, list | tuple | set | frozenset) else [value]
  for one in several:
    if not isinstance(one, str):
      raise InputError(f"stop={short(value)}: must be a text, or several")
    if not one:
      raise InputError("stop='': a stop string has at least one character")
  return tuple(several)


def path_of(name: str, value: Any, writes: bool = False) -> Path:
  """The path of a run or of a state on this machine.

  Raises:
    InputError: the value is not a path, or `paths.local` refuses it.
  """
  if not isinstance(value, str | os.PathLike):
    raise InputError(f"{name}={short(value)}: must be the path of a run or of a state")
  return local(value, writes=writes)


def short(value: Any) -> str:
  """The value in one line, for errors."""
  return " ".join(reprlib.repr(value).split())
