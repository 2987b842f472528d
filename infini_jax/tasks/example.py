"""Generated examples: texts of any length that end in an answer.

An example is a sequence of a few spans. The filler is a span that repeats its tokens, so a million
tokens need as much memory as a thousand. Like a document, an example of n tokens has the inputs
[bos, t_0 .. t_{n-2}] and the targets t_0 .. t_{n-1}. Its last tokens are the answer.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.tokenizers import Tokenizer


class Span(NamedTuple):
  """`size` tokens: the ids, repeated without end, from id `first` on.

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
    """Tokens `start` to `stop` of the span, (stop - start,) int."""
    return self.ids[(self.first + np.arange(start, stop)) % len(self.ids)]


@dataclasses.dataclass(frozen=True)
class Example:
  """A text in spans. `answers` are the indices of the spans that are answers."""

  spans: tuple[Span, ...]
  answers: frozenset[int]

  def __len__(self) -> int:
    return sum(span.size for span in self.spans)

  @property
  def first_asked(self) -> int:
    """The position of the first token of an answer."""
    first = min((i for i in self.answers if self.spans[i].size), default=len(self.spans))
    return sum(span.size for span in self.spans[:first])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop`, (stop - start,) int32."""
    return self._cut(start, stop, np.int32, lambda _, span, a, b: span.read(a, b))

  def weights(self, start: int, stop: int) -> np.ndarray:
    """The loss weight of each of those tokens, float32."""
    return self._cut(start, stop, np.float32, lambda _, span, a, b: np.full(b - a, span.weight))

  def asked(self, start: int, stop: int) -> np.ndarray:
    """Which of those tokens belong to an answer, bool."""
    return self._cut(start, stop, bool, lambda i, _, a, b: np.full(b - a, i in self.answers))

  def filler(self, start: int, stop: int) -> np.ndarray:
    """Which of those tokens are filler, bool."""
    return self._cut(start, stop, bool, lambda _, span, a, b: np.full(b - a, span.filler))

  def shared(self, other: "Example") -> int:
    """A lower bound of the number of tokens that both examples begin with."""
    same = 0
    for mine, its in zip(self.spans, other.spans, strict=False):
      if mine.first != its.first or not _equal(mine.ids, its.ids):
        break
      same += min(mine.size, its.size)
      if mine.size != its.size:
        break
    return same

  def _cut(self, start: int, stop: int, dtype: Any, read: Callable[..., np.ndarray]) -> np.ndarray:
    cuts = overlaps(start, stop, (span.size for span in self.spans))
    found = (read(i, self.spans[i], a, b) for i, a, b in cuts)
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
  spans: Sequence[Span], answers: Collection[int], context_weight: float, own: Collection[int] = ()
) -> Example:
  """An example whose answers have the loss weight 1 together, each answer the same.

  Args:
    spans: all spans of the example; their weights are replaced.
    answers: the indices of the spans that are answers.
    context_weight: the weight of all other spans together, each of their tokens the same.
    own: the indices of spans that keep their weight.
  """
  context = sum(span.size for i, span in enumerate(spans) if i not in answers and i not in own)

  def weight(i: int, span: Span) -> float:
    if i in own:
      return span.weight
    return 1 / (len(answers) * span.size) if i in answers else context_weight / max(1, context)

  found = (span._replace(weight=weight(i, span)) for i, span in enumerate(spans))
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
    title: the task, and its family if it has some; an evaluation sets it.
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
