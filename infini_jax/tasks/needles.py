"""Needles in text of a real corpus: one of the families `IN_FILLER`, in any number of tokens.

The statements and the question are never cut. The filler is a view of tokens that all examples
share, so a million tokens need as much memory as a thousand.
"""

import math
import threading

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.tasks.draw import Draw
from infini_jax.tasks.example import Example, Facts, Span, early
from infini_jax.tasks.needle_families import IN_FILLER
from infini_jax.tasks.needle_filler import Filler, corpus_of
from infini_jax.tasks.needle_writer import Writer

TRIALS = 32  # texts drawn to measure their length; the most draws until one is short enough

Told = list[tuple[float, Span]]  # statements, each with its position in the filler, 0 to 1


class Needles:
  """Texts with needles in filler; values are held out like pass keys.

  Args:
    config: the config of the run; `config.needle` sets the kind of needles.
    store: the corpus of the filler.
    tokenizer: the tokenizer of the run; by default that of the store.

  Raises:
    InputError: the tokenizer cannot write the needles, or there are too few digits.

  Attributes:
    store: the corpus of the filler.
    corpus: its name in the config.
  """

  facts = Facts("exact_match", depth_of="needle")
  hides = True
  any_words = True

  def __init__(self, config: Config, store: Store, tokenizer: Tokenizer | None = None):
    self.tokenizer = store.tokenizer if tokenizer is None else tokenizer
    self._task, self._seed, self.store = config.needle, config.train.seed, store
    self.corpus = corpus_of(config)
    if not 3 <= self._task.digits <= 32:
      raise InputError(
        f"config.needle.digits={self._task.digits}: numbers in needles have 3 to 32, so that there "
        f"are enough to hold out"
      )
    self._writer = Writer(config, self.tokenizer)
    self._fillers: dict[bool, Filler] = {}
    self._lock = threading.Lock()  # batches are read ahead in threads, which use one filler
    self.fingerprint = self._writer.fingerprint(store.fingerprint)
    rng = np.random.default_rng(0)
    sizes = [_size(*self._drawn(rng, 0.5, held_out=i % 2 > 0)) for i in range(TRIALS)]
    self.shortest = self.shortest_training = max(sizes)

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """A text of `length` tokens; the first statement of the answer is at `depth`."""
    depth = self._depth(rng, length) if depth is None else depth
    told, tail = self._drawn(rng, depth, held_out, length)
    filler = self._filler(held_out)
    return self._fill(told, tail, length, filler, filler.beginning(rng))

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """The beginning of a longer text; some statements come after `length` tokens."""
    told, tail = self._drawn(rng, self._depth(rng, length), False, self.shortest)
    filler = self._filler(held_out=False)
    return self._fill(told, tail, length + self.shortest, filler, filler.beginning(rng))

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """The statements of `before` that were not read, anywhere in more filler, and its question."""
    filler, question = self._filler(held_out=False), min(before.answers) - 1
    first = next(span.first for span in before.spans if span.ids is filler.ids)
    rest, begun = [], False
    for span in before.spans[:question]:
      seen = min(max(0, read), span.size)
      read -= span.size
      if span.ids is filler.ids:
        first += seen
      elif seen < span.size:
        rest.append(Span(span.ids[seen:], span.size - seen))
        begun |= seen > 0
    positions = np.sort(rng.random(len(rest)))
    positions[:begun] = 0  # its beginning was read already
    told = list(zip(positions.tolist(), rest, strict=True))
    return self._fill(told, list(before.spans[question:]), n, filler, first)

  @staticmethod
  def _depth(rng: np.random.Generator, length: int) -> float:
    """A uniform depth or an early one, with equal probability, as in the passkey task."""
    return rng.random() if rng.random() < 0.5 else early(rng, length)

  def _drawn(
    self, rng: np.random.Generator, depth: float, held_out: bool, most: float = math.inf
  ) -> tuple[Told, list[Span]]:
    """The statements and the question of a text, in at most `most` tokens together."""
    for _ in range(TRIALS):
      draw = Draw(rng, self._seed, held_out)
      tale = IN_FILLER[self._task.family](draw, self._task, depth)
      told = [(0.0, self._writer.piece(tale.intro, before=""))]
      told += [(position, self._writer.piece(text)) for position, text in tale.statements]
      tail = self._writer.tail(tale.question, tale.answers)
      if _size(told, tail) <= most:
        return told, tail
    raise InputError(
      f"config.needle.family={self._task.family!r}: an example of {most} tokens is too short, the "
      f"needles and the question have more; make it {self.shortest} or more"
    )

  def _fill(self, told: Told, tail: list[Span], length: int, filler: Filler, first: int) -> Example:
    """All statements at their positions, with filler between them that is read from `first` on."""
    room, front, done = length - _size(told, tail), [], 0
    for share, span in told:
      position = filler.place(first, room, share)
      front += [Span(filler.ids, position - done, first=first + done, filler=True), span]
      done = position
    front.append(Span(filler.ids, room - done, first=first + done, filler=True))
    return self._writer.example(front, tail)

  def _filler(self, held_out: bool) -> Filler:
    """The filler, read at its first use, so that an evaluation reads no training text."""
    with self._lock:
      if held_out not in self._fillers:
        self._fillers[held_out] = Filler(self.store, held_out)
      return self._fillers[held_out]


def _size(told: Told, tail: list[Span]) -> int:
  return sum(span.size for span in (*(span for _, span in told), *tail))
