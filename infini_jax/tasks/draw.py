"""Draws what one text says: keys, numbers, names and words, with values held out for evaluation.

Numbers, names, places and words of lists are values: about a tenth of each, fixed by the seed, is
held out. Pass keys are such numbers. (The pairs of recall are fresh in every example: there is
nothing to hold out.)
"""

import functools
import hashlib
from collections.abc import Callable

import numpy as np

from infini_jax.tasks.words import ADJECTIVES, CONSONANTS, NOUNS, PEOPLE, ROOMS, THINGS, VOWELS

HELD_OUT = 0.1  # of the values of each kind
FEW = 2  # digits of numbers that are so few that a tenth of them is counted out


class Draw:
  """Draws what one text says.

  Args:
    rng: where everything comes from.
    seed: of the run, which fixes what is held out.
    held_out: whether values are drawn among those that training never sees, or among the others.
  """

  def __init__(self, rng: np.random.Generator, seed: int, held_out: bool):
    self.rng, self._seed, self._held_out = rng, seed, held_out

  def keys(self, count: int) -> list[str]:
    """Different ones, such as `quiet harbor`; they are no values, and none is held out."""
    return self._several(count, lambda: self._pair(ADJECTIVES, " ", NOUNS), values=False)

  def people(self, count: int) -> list[str]:
    """Different first names, none held out."""
    return self.rng.permutation(PEOPLE)[:count].tolist()

  def things(self, count: int) -> list[str]:
    """Different things to carry, none held out."""
    return self.rng.permutation(THINGS)[:count].tolist()

  def numbers(self, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits, the first of which is no 0; but 0 itself is one."""

    def one() -> str:
      figures = self.rng.integers(0, 10, digits)
      figures[0] = self.rng.integers(min(1, digits - 1), 10)
      return "".join(map(str, figures))

    return self._several(count, one)

  def names(self, count: int) -> list[str]:
    """Different names of variables, such as `QZK`."""
    letters = lambda: "".join(chr(65 + i) for i in self.rng.integers(0, 26, 3))
    return self._several(count, letters)

  def places(self, count: int) -> list[str]:
    """Different places, such as `quiet garden`."""
    return self._several(count, lambda: self._pair(ADJECTIVES, " ", ROOMS))

  def words(self, count: int) -> list[str]:
    """Different words for a list, such as `quiet-harbor`; fewer where there are not so many."""
    found: list[str] = []
    for i in self.rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
      if len(found) == count:
        break
      word = f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}"
      if self._is_held_out(word) == self._held_out:
        found.append(word)
    return found

  def invented(self, count: int) -> list[str]:
    """Different words that nobody knows, such as `tomiku`."""
    syllable = lambda: self._pair(CONSONANTS, "", VOWELS)
    return self._several(count, lambda: syllable() + syllable() + syllable())

  def _pair(self, first: list[str] | str, joint: str, second: list[str] | str) -> str:
    a, b = int(self.rng.integers(len(first))), int(self.rng.integers(len(second)))
    return first[a] + joint + second[b]

  def _several(self, count: int, one: Callable[[], str], values: bool = True) -> list[str]:
    found: dict[str, None] = {}  # in the order in which they were drawn
    while len(found) < count:
      text = one()
      if not values or self._is_held_out(text) == self._held_out:
        found[text] = None
    return list(found)

  def _is_held_out(self, value: str) -> bool:
    if len(value) <= FEW and value.isdigit():
      return value in _least(self._seed, len(value))
    return _place(self._seed, value) < HELD_OUT


def _place(seed: int, value: str) -> float:
  """Where a value stands among all others of its kind, 0 to 1: a hash."""
  digest = hashlib.blake2b(f"{seed} {value}".encode(), digest_size=4).digest()
  return int.from_bytes(digest) / 2**32


@functools.lru_cache
def _least(seed: int, digits: int) -> frozenset[str]:
  """The numbers of so few digits that are held out: all their hashes may be on one side."""
  numbers = map(str, range(10 ** (digits - 1) * (digits > 1), 10**digits))
  ranked = sorted(numbers, key=lambda number: _place(seed, number))
  return frozenset(ranked[: round(len(ranked) * HELD_OUT)])
