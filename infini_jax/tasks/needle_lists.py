"""Long lists of words; the answers are the most frequent words. Nothing in them is filler.

After RULER's common and frequent words (Hsieh et al., arXiv 2404.06654), with our own words.
"""

import functools
import math

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tokenizers import Tokenizer, load_tokenizer
from infini_jax.tasks.draw import Draw
from infini_jax.tasks.example import Example, Facts, Span
from infini_jax.tasks.needle_families import (
  COMMON_WORDS,
  FREQUENT_WORDS,
  ask_common,
  ask_frequent,
)
from infini_jax.tasks.needle_writer import Writer

OFTENER, RARE = 10, 3  # common_words: a common word occurs 30 times, another word 3 times
ASKED = 3  # frequent_words: words in the answer
SHORTEST = 32  # frequent_words: words in the shortest list
DOTS = "..."  # between frequent words; in all lists it fills what no word fits into
TRIALS = 32  # lists drawn to measure their length; the most draws until one is short enough


class WordLists:
  """Lists of words in random order; words are held out like the values of other needles.

  Args:
    config: the config of the run; `config.needle.family` is common_words or frequent_words.
    tokenizer: the tokenizer of the run; by default that of `config.data.tokenizer`.

  Raises:
    InputError: the tokenizer cannot write the words.
  """

  facts = Facts("exact_match")
  hides = False
  any_words = True

  def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
    self.tokenizer = load_tokenizer(config.data.tokenizer) if tokenizer is None else tokenizer
    self._task, self._seed = config.needle, config.train.seed
    self._common = config.needle.family == "common_words"
    self._writer = Writer(config, self.tokenizer)
    self.fingerprint = self._writer.fingerprint("")
    self._entry = functools.lru_cache(2**14)(lambda word: self._writer.piece(f" {word}").ids)
    self._intro = self._writer.piece(COMMON_WORDS if self._common else FREQUENT_WORDS, before="")
    rng = np.random.default_rng(0)
    draws = (Draw(rng, self._seed, held_out=i % 2 > 0) for i in range(TRIALS))
    self.shortest = self.shortest_training = max(map(self._least, draws))

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """A list and its question, `length` tokens; the depth has no effect."""
    for _ in range(TRIALS):
      words, tail, fixed = self._asked(Draw(rng, self._seed, held_out), length)
      sizes = np.array([len(self._entry(word)) for word in words])
      counts = (
        common_counts(sizes, length - fixed, self._task.needles)
        if self._common
        else frequent_counts(sizes, length - fixed, len(self._entry(DOTS)))
      )
      if counts is not None:
        break
    else:
      raise InputError(
        f"config.needle.family={self._task.family!r}: a list of {length} tokens is too short for "
        f"its words; make it {self.shortest} or more"
      )
    left, dots = length - fixed - int(counts @ sizes), self._entry(DOTS)
    if not self._common:
      words, counts = [*words, DOTS], np.append(counts, left // len(dots))
      left %= len(dots)
    order = rng.permutation(np.repeat(np.arange(len(words)), counts))
    ids = np.concatenate([self._entry(words[i]) for i in order.tolist()])
    return self._writer.example([self._intro, Span(ids, len(ids)), Span(dots, left)], tail)

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """Earlier text of dots only, because words would change the counts."""
    return Example((Span(self._entry(DOTS), length, filler=True),), frozenset())

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """An independent example of `n` tokens."""
    return self.example(rng, n, held_out=False)

  def _asked(self, draw: Draw, length: int) -> tuple[list[str], list[Span], int]:
    """Words (the first are the answers), the question, and the tokens of all but the list."""
    if self._common:
      words = draw.words(self._task.needles + length // 8)
      answers = sorted(words[: self._task.needles])
      tail = self._writer.tail(ask_common(answers), answers)
    else:
      words = draw.invented(ASKED + 1 + math.isqrt(length))
      answers = words[:ASKED]
      tail = self._writer.tail(ask_frequent(answers), answers)
    return words, tail, self._intro.size + sum(span.size for span in tail)

  def _least(self, draw: Draw) -> int:
    """The tokens of the shortest list of some drawn words."""
    words, _, fixed = self._asked(draw, 0)
    sizes = [len(self._entry(word)) for word in words]
    if self._common:  # half of the shortest list is common words
      return fixed + 2 * OFTENER * sum(sizes)
    return fixed + SHORTEST * max(sizes)


def common_counts(sizes: np.ndarray, room: int, common: int) -> np.ndarray | None:
  """The count of each word in `room` tokens; the first `common` are common. None: too few tokens.

  `sizes` are the tokens of each word. A longer list has more words. If all words are used, they are
  used again.
  """
  counts = np.zeros(len(sizes), np.int64)
  once = OFTENER * int(sizes[:common].sum())
  times = RARE if 2 * RARE * once <= room else 1
  if once > room:
    return None
  while times * once <= room:
    counts[:common] += OFTENER * times
    room -= times * once
    ends = times * np.cumsum(sizes[common:])
    whole = int(np.searchsorted(ends, room, side="right"))
    counts[common : common + whole] += times
    room -= int(ends[whole - 1]) if whole else 0
  if (last := common + whole) < len(sizes):  # fewer copies of it may fit
    counts[last] += room // int(sizes[last])
  return counts


def frequent_counts(sizes: np.ndarray, room: int, dots: int) -> np.ndarray | None:
  """The count of each word in `room` tokens, the most frequent first. None: too few tokens.

  `sizes` are the tokens of each word. The k-th most frequent entry is 1 / (zeta(2) k^2) of the
  list; entry 1 is the dots, of `dots` tokens.
  """
  shares = 1 / (np.pi**2 / 6 * np.arange(1, len(sizes) + 2) ** 2)

  def counts(entries: int) -> np.ndarray:
    found = (entries * shares[1:]).astype(np.int64)
    for k in reversed(range(ASKED)):  # also in a short list, each is more frequent than the next
      found[k] = max(found[k], found[k + 1] + 1)
    return found

  fits = lambda n: counts(n) @ sizes + int(n * shares[0]) * dots <= room
  least, most = -1, room
  while least < most:  # the longest list that fits
    middle = (least + most + 1) // 2
    least, most = (middle, most) if fits(middle) else (least, middle - 1)
  return counts(least) if least >= 0 else None
