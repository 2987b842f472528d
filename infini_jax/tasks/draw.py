"""Draws the content of a text: keys, numbers, names and words, with values held out for evaluation.

Numbers, names, places and words of lists are values. About a tenth of each kind, fixed by the seed,
is held out. Pass keys are such numbers. (Recall draws new pairs in every example, and holds out
none.)
"""

import functools
import hashlib
from collections.abc import Callable

import numpy as np

from infini_jax.tasks.words import ADJECTIVES, CONSONANTS, NOUNS, PEOPLE, ROOMS, THINGS, VOWELS

HELD_OUT = 0.1  # the share of the values of each kind
FEW = 2  # numbers of up to this many digits are so few that exactly a tenth is held out


class Draw:
  """Draws the content of one text.

  Args:
    rng: the generator of all draws.
    seed: the seed of the run, which fixes the held-out values.
    held_out: whether to draw only held-out values, which training never uses, or only the others.
  """

  def __init__(self, rng: np.random.Generator, seed: int, held_out: bool):
    self.rng, self._seed, self._held_out = rng, seed, held_out

  def keys(self, count: int) -> list[str]:
    """Different keys, such as `quiet harbor`; no key is held out."""
    return self._several(count, lambda: self._pair(ADJECTIVES, " ", NOUNS), values=False)

  def people(self, count: int) -> list[str]:
    """Different first names; none is held out."""
    return self.rng.permutation(PEOPLE)[:count].tolist()

  def things(self, count: int) -> list[str]:
    """Different things that people carry; none is held out."""
    return self.rng.permutation(THINGS)[:count].tolist()

  def numbers(self, count: int, digits: int) -> list[str]:
    """Different numbers with this many digits and no leading 0; with one digit, 0 is possible."""

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
    """Different words for a list, such as `quiet-harbor`; fewer if there are not enough."""
    found: list[str] = []
    for i in self.rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
      if len(found) == count:
        break
      word = f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}"
      if self._is_held_out(word) == self._held_out:
        found.append(word)
    return found

  def invented(self, count: int) -> list[str]:
    """Different invented words, such as `tomiku`."""
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
  """A hash of a value, 0 to 1, that orders the values of a kind."""
  digest = hashlib.blake2b(f"{seed} {value}".encode(), digest_size=4).digest()
  return int.from_bytes(digest) / 2**32


@functools.lru_cache
def _least(seed: int, digits: int) -> frozenset[str]:
  """The held-out numbers with few digits: an exact tenth, because the hashes may be unbalanced."""
  numbers = map(str, range(10 ** (digits - 1) * (digits > 1), 10**digits))
  ranked = sorted(numbers, key=lambda number: _place(seed, number))
  return frozenset(ranked[: round(len(ranked) * HELD_OUT)])
