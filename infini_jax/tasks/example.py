"""Generated examples: texts of any length that end in an answer.

An example is a sequence of a few parts. The filler is a part that repeats its tokens, so a million
tokens need as much memory as a thousand. Like a document, an example of n tokens has the inputs
[bos, t_0 .. t_{n-2}] and the targets t_0 .. t_{n-1}. Its last tokens are the answer.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.tokenizers import Tokenizer


class Part(NamedTuple):
  """`size` tokens: the ids, repeated without end, from place `first` on.

  Attributes:
    weight: the loss weight of each token.
    filler: whether no answer depends on its tokens.
  """

  ids: np.ndarray
  size: int
  weight: float = 0.0
  first: int = 0
  filler: bool = False

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of the part, (stop - start,) int."""
    return self.ids[(self.first + np.arange(start, stop)) % len(self.ids)]


@dataclasses.dataclass(frozen=True)
class Example:
  """A text in parts. `answers` are the indices of the parts that are answers."""

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

  def filler(self, start: int, stop: int) -> np.ndarray:
    """Which of those tokens are filler, bool."""
    return self._cut(start, stop, bool, lambda _, part, a, b: np.full(b - a, part.filler))

  def shared(self, other: "Example") -> int:
    """A lower bound of the number of tokens that both examples begin with."""
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
  """The ranges of consecutive pieces that `start` to `stop` covers.

  Yields:
    The index of a piece, and the start and stop inside it; only for pieces with such a range.
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
  """An example whose answers have the loss weight 1 together, each answer the same.

  Args:
    parts: all parts of the example; their weights are replaced.
    answers: the indices of the parts that are answers.
    context_weight: the weight of all other parts together, each of their tokens the same.
    own: the indices of parts that keep their weight.
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


class Facts(NamedTuple):
  """What tables and reports read of a task; `results.json` has them.

  Attributes:
    measure: the figure by which runs are compared: exact_match, token_accuracy or perplexity;
      empty: the task has figures of its own.
    asked: what an answer is.
    depth_of: what is hidden in an example at a depth; empty: examples have no depth.
    title: the task, and its family if it has some; an evaluation knows it.
  """

  measure: str = ""
  asked: str = "answer"
  depth_of: str = ""
  title: str = ""


class Task(Protocol):
  """A kind of example. All random draws come from the generator in the arguments."""

  facts: Facts
  hides: bool  # whether its examples hide in documents: it is made with a store of them
  any_words: bool  # whether a vocabulary that was trained on text can write it

  tokenizer: Tokenizer
  fingerprint: str  # a short hash of the task's settings and its tokenizer
  shortest: int  # tokens of the shortest held-out example
  shortest_training: int  # tokens of the shortest training example

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """An example of exactly `length` tokens. Without `depth`, the depth is drawn too.

    Raises:
      InputError: `length` is too short for an example.
    """
    ...

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """Earlier text for a warm memory: `length` tokens or more, with no answer in the first ones."""
    ...

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """`n` tokens that continue `before` after its first `read` tokens, and end in an answer."""
    ...


def early(rng: np.random.Generator, length: int) -> float:
  """An early depth: 0 in one case of four, else with a log-uniform number of tokens before it.

  With 10,000 tokens, over half of the keys are in the first 100. A key in the first segment is
  written to an empty memory. Uniform depths rarely train this case, but the model must learn it.
  """
  return 0.0 if rng.random() < 0.25 else length ** (rng.random() - 1)


def check_length(length: int, shortest: int, setting: str) -> None:
  """Raises InputError if `length` is below `shortest`; both are in tokens."""
  if length < shortest:
    raise InputError(
      f"{setting}: {length} tokens are too short for the task's shortest example, which has "
      f"{shortest}: make it {shortest} tokens or more"
    )
