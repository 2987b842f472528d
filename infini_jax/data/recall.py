"""Associative recall of many pairs, as in the MQAR benchmark (Arora et al., arXiv 2312.04927).

Keys with their values stand spread over a text of filler; at its end every key is asked for once
more, in another order, and its value is the answer.
"""

import hashlib

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tasks import Example, Part
from infini_jax.data.tokenizers import Tokenizer, WordTokenizer


class Recall:
  """Pairs of `distinct_keys` keys and `distinct_values` values, in the task's own vocabulary.

  Raises:
    InputError: another tokenizer than `task`.
  """

  has_depth = False

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
    self.fingerprint = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """Pairs at random even places of all but the end of `length` tokens; then every question.

    Even places, counted from the document mark, so that no segment's border parts a pair.
    The pairs and their order are fresh in every example, so none is held out; depth says nothing.
    A training example that is too short for all pairs has as many as fit: with few of them, a
    guess among the values that stand there is too good for binding to be learned.
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
    parts, answers, at = [], set(), 0
    ends = 2 * np.sort(rng.integers(0, (gaps - 1) // 2 + 1, pairs)) + 1
    context = t.context_weight / (length - pairs)
    for key, value, end in zip(keys, values, ends.tolist(), strict=True):
      pair = np.array([key, value], np.int32)
      parts += [Part(self._filler, end - at, context), Part(pair, 2, context)]
      at = end
    parts += [Part(self._filler, gaps - at, context), Part(self._question, 1, context)]
    for i in rng.permutation(pairs):
      parts.append(Part(keys[i : i + 1], 1, context))
      answers.add(len(parts))
      parts.append(Part(values[i : i + 1], 1, 1 / pairs))
    return Example(tuple(parts), frozenset(answers))

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """Filler alone: a key that stood there would be one with two values."""
    return Example((Part(self._filler, length, filler=True),), frozenset())

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """An example of its own."""
    return self.example(rng, n, held_out=False)
