"""The passkey task, with exactly the text of the paper (arXiv 2404.07143v2, appendix B).

A key is in a text of repeated filler, and the question for it is at the end. The text has exactly
the given number of tokens: filler before and after the key is cut; the key and the question are
not.
"""

import re

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tokenizers import Tokenizer, WordTokenizer, load_tokenizer
from infini_jax.digests import short_hash
from infini_jax.tasks.draw import Draw
from infini_jax.tasks.example import Example, Facts, Span, early, weighed
from infini_jax.tasks.pieces import Pieces

INTRO = (
  "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
  "I will quiz you about the important information there."
)
FILLER = (
  " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
KEY = " The pass key is {key}. Remember it."
REPEAT = " {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"
ANSWER = " {key}"
REPEATED = 3  # the index of the span that repeats the key, which has its own weight
WORDS = re.compile(r" ?[A-Za-z]+| |[^A-Za-z ]")


def words() -> list[str]:
  """The vocabulary of only this task: its words, its punctuation, a space, the ten digits."""
  text = INTRO + FILLER + KEY + REPEAT + QUESTION + ANSWER
  return [*map(str, range(10)), *sorted(set(WORDS.findall(text.replace("{key}", ""))))]


class Passkey:
  """Keys of `digits` digits; about every tenth key is held out for evaluation.

  Raises:
    InputError: the tokenizer cannot write the prompt or the digits.
  """

  facts = Facts("exact_match", asked="key", depth_of="key")
  hides = False
  any_words = True

  def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
    spec = config.data.tokenizer
    if tokenizer is None:
      tokenizer = WordTokenizer(words()) if spec == "task" else load_tokenizer(spec)
    self.tokenizer = tokenizer
    self._digits, self._task = config.task.digits, config.task
    self._seed = config.train.seed
    if not 1 <= self._digits <= 32:
      raise InputError(f"config.task.digits={self._digits}: choose 1 to 32")
    self._pieces = Pieces(tokenizer, spec, "the pass key prompt", "a tokenizer with digits")
    self._intro = self._pieces.span(INTRO, "")
    self._filler = self._pieces.span(FILLER, INTRO).ids
    self._question = self._pieces.span(QUESTION, FILLER).ids
    size = lambda key: sum(span.size for span in self._told(key))
    keys = ["".join(str((d + i) % 10) for i in range(self._digits)) for d in range(10)]
    one = max(size(str(d)) for d in range(10))
    # The tokenizer may join digits of these keys, but not of others: count digits three times.
    longest = max(one + 3 * (self._digits - 1), *map(size, keys))  # every digit at every position
    self.shortest = self.shortest_training = self._intro.size + longest + len(self._question)
    name = f"passkey {config.task.digits} {tokenizer.fingerprint}"
    self.fingerprint = short_hash(name.encode())

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """A prompt and its answer: `length` tokens, the key at `depth` of the filler (0 to 1).

    In training the depth is uniform or early (see `early`), with equal probability. A share
    `task.late` of the keys is near the end instead: the depth is 1 - early.
    """
    if depth is None:
      depth = self._late(rng, length)
    if depth is None:
      depth = rng.random() if rng.random() < 0.5 else early(rng, length)
    key = self._key(rng, held_out)
    return self._assemble(self._intro, key, length, depth, self._cycle(0))

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """The beginning of a prompt. Two of three have the key in it, at an early depth; in the others,
    the key comes later."""
    key = self._key(rng, held_out=False)
    depth = early(rng, length) if rng.random() < 2 / 3 else 1.0
    cycle = self._cycle(0)
    return self._assemble(self._intro, key, length + self.shortest, depth, cycle)

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """More filler and the question; with a new key if no key of `before` was read."""
    key = 2  # the index of the span that states the key
    ahead = sum(span.size for span in before.spans[:key])
    if read <= ahead:
      intro = before.spans[0].size
      rest = before.read(read, max(read, intro))  # the rest of the intro
      cycle = self._cycle(max(0, read - intro))
      head = Span(rest, len(rest))
      depth = self._late(rng, n)
      depth = rng.random() if depth is None else depth
      return self._assemble(head, self._key(rng, False), n, depth, cycle)
    end = ahead + sum(span.size for span in before.spans[key : key + 2])
    rest = before.read(read, max(read, end))  # the rest of the key
    cycle = self._cycle(max(0, read - end))
    return self._finish([Span(rest, len(rest)), cycle], before.spans[-2:], n)

  def _late(self, rng: np.random.Generator, length: int) -> float | None:
    """A depth near the end, with the probability `task.late`; else None."""
    if not self._task.late or rng.random() >= self._task.late:
      return None
    return 1 - early(rng, length)

  def _assemble(self, head: Span, key: str, length: int, depth: float, cycle: Span) -> Example:
    statement, repeat, answer = self._told(key)
    tail = self._pieces.asked(self._question, answer.ids)
    fixed = sum(span.size for span in (head, statement, repeat, *tail))
    before = round(depth * max(0, length - fixed))
    repeat = repeat._replace(weight=self._task.repeat_weight / repeat.size)
    front = [head, cycle._replace(size=before), statement, repeat, self._cycle(0)]
    return self._finish(front, tail, length, own=(REPEATED,))

  def _cycle(self, first: int) -> Span:
    """Filler from its token `first` on; the caller sets the size."""
    return Span(self._filler, 0, first=first, filler=True)

  def _finish(
    self, front: list[Span], tail: tuple[Span, ...], length: int, own: tuple[int, ...] = ()
  ) -> Example:
    """Extends the last span of `front` to the length, and sets the loss weights."""
    room = length - sum(span.size for span in (*front[:-1], *tail))
    if room < 0:
      raise InputError(
        f"a pass key prompt of {length} tokens: the key and the question alone have {length - room}"
      )
    spans = [*front[:-1], front[-1]._replace(size=room), *tail]
    return weighed(spans, [len(spans) - 1], self._task.context_weight, own)

  def _told(self, key: str) -> tuple[Span, Span, Span]:
    """The statement, its repetition, and the answer."""
    statement, repeat = KEY.format(key=key), REPEAT.format(key=key)
    return (
      self._pieces.span(statement, FILLER),
      self._pieces.span(repeat, statement),
      self._pieces.span(ANSWER.format(key=key), QUESTION),
    )

  def _key(self, rng: np.random.Generator, held_out: bool) -> str:
    return Draw(rng, self._seed, held_out).numbers(1, self._digits)[0]
