"""What a caller may pass: numbers of the right kind, in Python's own types.

NumPy's scalars are taken; a bool, a text, an array and a fraction where whole numbers are counted
are not: something else was meant.
"""

import numbers
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini_jax.config import InputError

LARGEST = 2**31 - 1  # of what is counted: more is a slip
LARGEST_SEED = 2**32 - 1


def whole(name: str, value: Any, least: int = 0, most: int = LARGEST, low: str = "") -> int:
  """A whole number from `least` to `most`.

  Raises:
    InputError: anything else. `low` says in other words what the least is.
  """
  low = low or f"at least {least}"
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise InputError(f"{name}={short(value)}: must be a whole number, {low}")
  if not least <= int(value) <= most:
    raise InputError(f"{name}={value}: must be {low if value < least else f'at most {most}'}")
  return int(value)


def number(name: str, value: Any) -> float:
  """A real number; infinite ones and NaN are left to whoever knows the bounds.

  Raises:
    InputError: anything else.
  """
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise InputError(f"{name}={short(value)}: must be a number")
  try:
    return float(value)
  except OverflowError:  # a whole number of hundreds of digits
    return float("inf")


def seeds(value: Any, lanes: int) -> np.ndarray:
  """One seed for each lane, (B,) uint32: those given, or from one seed on.

  Raises:
    InputError: no whole numbers from 0 to 2^32 - 1, or not one for each lane.
  """
  several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
  if not (several or (isinstance(value, np.ndarray) and value.ndim)):
    first = whole("seed", value, most=LARGEST_SEED)
    return np.array([(first + i) % 2**32 for i in range(lanes)], np.uint32)
  if len(value) != lanes:
    raise InputError(f"seed={short(value)}: a session of {lanes} lanes takes one seed, or {lanes}")
  return np.array([whole("seed", one, most=LARGEST_SEED) for one in value], np.uint32)


def stops(value: Any) -> tuple[str, ...]:
  """Stop strings: one, or several.

  Raises:
    InputError: what is no text, or is empty.
  """
  several = value if isinstance(value, list | tuple | set | frozenset) else [value]
  for one in several:
    if not isinstance(one, str):
      raise InputError(f"stop={short(value)}: must be a text, or several")
    if not one:
      raise InputError("stop='': a stop string has at least one character")
  return tuple(several)


def short(value: Any) -> str:
  """In one line."""
  return " ".join(reprlib.repr(value).split())
