"""Examples made on the spot: texts of any length that end in an answer.

An example is a few parts, one after the other; the filler is a part that repeats itself, so a
million tokens take no more room than a thousand. Like a document, an example of n tokens is read as
[bos, t_0 .. t_{n-2}] to predict t_0 .. t_{n-1}; the answer is its end.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.tokenizers import Tokenizer


class Part(NamedTuple):
  """`size` tokens: the ids over and over from `first` on.

  Attributes:
    weight: the loss weight of each token.
    filler: whether nothing in it is ever asked for, so that more of it is like it.
  """

  ids: np.ndarray
  size: int
  weight: float = 0.0
  first: int = 0
  filler: bool = False

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of the part."""
    return self.ids[(self.first + np.arange(start, stop)) % len(self.ids)]


@dataclasses.dataclass(frozen=True)
class Example:
  """A text in parts. `answers` are the places of those parts that are asked for."""

  parts: tuple[Part, ...]
  answers: frozenset[int]

  def __len__(self) -> int:
    return sum(part.size for part in self.parts)

  @property
  def first_asked(self) -> int:
    """The place of the first token of an answer."""
    first = min((i for i in self.answers if self.parts[i].size), default=len(self.parts))
    return sum(part.size for part in self.parts[:first])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop`, (stop - start,) int32."""
    return self._cut(start, stop, np.int32, lambda _, part, a, b: part.read(a, b))

  def weights(self, start: int, stop: int) -> np.ndarray:
    """The loss weight of each of those tokens, float32."""
    return self._cut(start, stop, np.float32, lambda _, part, a, b: np.full(b - a, part.weight))

  def asked(self, start: int, stop: int) -> np.ndarray:
    """Which of those tokens belong to an answer, bool."""
    return self._cut(start, stop, bool, lambda i, _, a, b: np.full(b - a, i in self.answers))

  def is_filler(self, start: int, stop: int) -> bool:
    """Whether all of those tokens are."""
    fill = lambda _, part, a, b: np.full(b - a, part.filler)
    return bool(self._cut(start, stop, bool, fill).all())

  def shared(self, other: "Example") -> int:
    """Tokens that both begin with; at least so many."""
    same = 0
    for mine, its in zip(self.parts, other.parts, strict=False):
      if mine.first != its.first or not _equal(mine.ids, its.ids):
        break
      same += min(mine.size, its.size)
      if mine.size != its.size:
        break
    return same

  def _cut(self, start: int, stop: int, dtype: Any, read: Callable[..., np.ndarray]) -> np.ndarray:
    cuts = overlaps(start, stop, (part.size for part in self.parts))
    found = (read(i, self.parts[i], a, b) for i, a, b in cuts)
    return np.concatenate([np.zeros(0, dtype), *found]).astype(dtype)


def overlaps(start: int, stop: int, sizes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
  """What of each of some pieces in a row is cut out by `start` to `stop`.

  Yields:
    The place of a piece, and from where to where in it; only pieces of which there is something.
  """
  begin = 0
  for i, size in enumerate(sizes):
    a, b = max(start - begin, 0), min(stop - begin, size)
    if a < b:
      yield i, a, b
    begin += size


def weighed(
  parts: Sequence[Part], answers: Collection[int], context_weight: float, own: Collection[int] = ()
) -> Example:
  """An example whose answers weigh 1 together, each of them as much as another.

  Args:
    parts: all of it; their weights are set.
    answers: the places of the parts that are asked for.
    context_weight: of all other parts together, each of their tokens as much as another.
    own: the places of parts that keep their weight.
  """
  context = sum(part.size for i, part in enumerate(parts) if i not in answers and i not in own)

  def weight(i: int, part: Part) -> float:
    if i in own:
      return part.weight
    return 1 / (len(answers) * part.size) if i in answers else context_weight / max(1, context)

  found = (part._replace(weight=weight(i, part)) for i, part in enumerate(parts))
  return Example(tuple(found), frozenset(answers))


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
  return one is other or np.array_equal(one, other)


class Task(Protocol):
  """A kind of example. Everything drawn comes from the generator that is given."""

  tokenizer: Tokenizer
  fingerprint: str  # a short hash of what is asked and in which tokens
  shortest: int  # tokens of the shortest held-out example
  shortest_training: int  # tokens of the shortest example of training
  has_depth: bool  # whether an example is different with another depth

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """An example of exactly `length` tokens; without `depth` it is drawn too.

    Raises:
      InputError: it does not fit into so few.
    """
    ...

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """Earlier text, for a warm memory: an example that is not over after `length` tokens."""
    ...

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """`n` tokens that go on after the first `read` of `before`, and end in an answer."""
    ...


def early(rng: np.random.Generator, length: int) -> float:
  """A depth with log-uniformly much before it, and one in four at the very start: of ten thousand
  tokens' keys, over half stand in the first hundred. A key in the first segment is written by a
  model that has no memory yet: rare where keys are spread evenly, and it too must last."""
  return 0.0 if rng.random() < 0.25 else length ** (rng.random() - 1)


def check_length(length: int, shortest: int, setting: str) -> None:
  """Raises InputError if no example is that short."""
  if length < shortest:
    raise InputError(
      f"{setting}: {length} tokens are too short for the task's shortest example, which has "
      f"{shortest}: make it {shortest} tokens or more"
    )
