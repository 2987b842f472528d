"""Associative recall of many pairs, as in the MQAR benchmark (Arora et al., arXiv 2312.04927).

Pairs of a key and a value are spread over a text of filler. At the end all keys come again, in
another order, and the answer after each key is its value.
"""

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tokenizers import Tokenizer, WordTokenizer
from infini_jax.digests import short_hash
from infini_jax.tasks.example import Example, Facts, Span, weighed


class Recall:
  """Pairs of `distinct_keys` keys and `distinct_values` values, in the task's own vocabulary.

  Raises:
    InputError: the tokenizer is not `task`, or is the vocabulary of another task.
  """

  facts = Facts("token_accuracy")
  hides = False
  any_words = False

  def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
    t = config.task
    if config.data.tokenizer != "task":
      raise InputError(
        f"config.data.tokenizer={config.data.tokenizer!r}: recall has its own vocabulary: train "
        f"a run with config.data.tokenizer='task'"
      )
    pieces = [
      " .",
      " ?",
      *(f" k{i}" for i in range(t.distinct_keys)),
      *(f" v{i}" for i in range(t.distinct_values)),
    ]
    self.tokenizer = WordTokenizer(pieces) if tokenizer is None else tokenizer
    self._filler, self._question = (self.tokenizer.encode(text) for text in (" .", " ?"))
    self._keys = np.concatenate([self.tokenizer.encode(f" k{i}") for i in range(t.distinct_keys)])
    self._values = np.concatenate(
      [self.tokenizer.encode(f" v{i}") for i in range(t.distinct_values)]
    )
    if len(self._keys) != t.distinct_keys or len(self._values) != t.distinct_values:
      raise InputError("the run's vocabulary is not that of recall: train a run on recall for it")
    self._task = t
    self.shortest = 4 * t.pairs + 2
    self.shortest_training = 6
    name = f"recall {t.pairs} {t.distinct_keys} {t.distinct_values} {self.tokenizer.fingerprint}"
    self.fingerprint = short_hash(name.encode())

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """Pairs at random even positions, then the questions at the end of `length` tokens.

    The positions are even, counted from bos, so that no segment border divides a pair. With
    `task.span`, the pairs are in this many first tokens, and filler follows. The pairs and their
    order are new in every example, so none is held out; the depth has no effect. A training example
    that is too short for all pairs has as many as fit. (With very few pairs, guessing one of the
    values in the text gives such a low loss that the model does not learn to bind them to keys.)
    """
    t = self._task
    pairs = t.pairs if held_out else min(t.pairs, (length - 2) // 4)
    gaps = length - 4 * pairs - 1
    if gaps < 1:
      raise InputError(
        f"a recall example of {length} tokens is too short for {pairs} pairs: "
        f"make it {self.shortest} or more"
      )
    keys = rng.permutation(self._keys)[:pairs]
    values = rng.choice(self._values, pairs)
    room = min(gaps, max(1, t.span - 2 * pairs)) if t.span else gaps
    ends = 2 * np.sort(rng.integers(0, (room - 1) // 2 + 1, pairs)) + 1
    told, spans = np.stack([keys, values], 1), []
    for pair, gap in zip(told, np.diff(ends, prepend=0).tolist(), strict=True):
      spans += [Span(self._filler, gap), Span(pair, 2)]
    return self._ask(rng, spans, told, length)

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """Filler; with `task.span`, two of three also have pairs."""
    if self._task.span and rng.random() < 2 / 3:
      return self.example(rng, length + self.shortest, held_out=True)
    return Example((Span(self._filler, length, filler=True),), frozenset())

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """Filler, and as many questions as fit, for the pairs of `before` that were read.

    If no pair was read, it is an independent example. A key never has two values.
    """
    starts = np.cumsum([0, *(span.size for span in before.spans)])
    pairs = [
      (span.ids, int(at))
      for span, at in zip(before.spans, starts, strict=False)
      if len(span.ids) == 2
    ]
    told = [ids for ids, at in pairs if at < read]
    if not told:
      return self.example(rng, n, held_out=False)
    begun = [ids[1:] for ids, at in pairs if at == read - 1]  # its value was not read yet
    return self._ask(rng, [Span(ids, 1) for ids in begun], np.stack(told), n)

  def _ask(
    self, rng: np.random.Generator, spans: list[Span], told: np.ndarray, length: int
  ) -> Example:
    """Filler after `spans`, and questions for as many of the `told` pairs as fit."""
    before = sum(span.size for span in spans)
    asked = told[rng.permutation(len(told))][: (length - before - 1) // 2]
    left = length - before - 2 * len(asked) - 1
    spans = [*spans, Span(self._filler, left, filler=True), Span(self._question, 1)]
    answers = set()
    for key, value in asked:
      answers.add(len(spans) + 1)
      spans += [Span(np.array([x], np.int32), 1) for x in (key, value)]
    return weighed(spans, answers, self._task.context_weight)
