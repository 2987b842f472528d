"""From the needles' text to tokens: parts of an example, and what each weighs."""

import hashlib

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.tasks.example import Example, Part

BEFORE = "So it is."  # what a piece of text is thought to stand behind


class Writer:
  """Writes a run's needles in its tokens.

  Args:
    config: of the run.
    tokenizer: to write with.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self._task, self._spec, self._tokenizer = config.task, config.data.tokenizer, tokenizer
    self._begins = len(tokenizer.encode(BEFORE))

  def fingerprint(self, corpus: str) -> str:
    """A short hash of what is asked, in which tokens, hidden in which corpus."""
    t = self._task
    asked = f"{t.family} {t.needles} {t.hops} {t.facts} {t.digits}"
    name = f"needle {asked} {self._tokenizer.fingerprint} {corpus}"
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()

  def piece(self, text: str, before: str = BEFORE) -> Part:
    """The tokens that `text` adds after `before`.

    Raises:
      InputError: the tokenizer cannot write it.
    """
    start = self._begins if before is BEFORE else len(self._tokenizer.encode(before))
    ids = self._tokenizer.encode(before + text)[start:]
    found = self._tokenizer.decode(ids)
    if found.strip() != text.strip():
      raise InputError(
        f"config.data.tokenizer={self._spec!r} cannot write the needles: {text.strip()!r} comes "
        f"back as {found.strip()!r}; choose a tokenizer of all text, such as bytes"
      )
    return Part(ids, len(ids))

  def tail(self, question: str, answers: list[str]) -> list[Part]:
    """The question, and each answer behind a part that leads to it.

    A space that is a token of its own belongs to what leads to the answer.
    """
    parts, text = [], question
    leading = self.piece(question).ids
    for i, answer in enumerate(answers):
      if i:
        leading, text = self.piece(",", text).ids, f"{text},"
      ids, space = self.piece(f" {answer}", text).ids, 0
      while not self._tokenizer.decode(ids[: space + 1]).strip():
        space += 1
      leading, ids = np.concatenate([leading, ids[:space]]), ids[space:]
      parts += [Part(leading, len(leading)), Part(ids, len(ids))]
      text = f"{text} {answer}"
    return parts

  def example(self, front: list[Part], tail: list[Part]) -> Example:
    """All of it: the answers together weigh 1, each of them as much as another."""
    parts, answers = [*front, *tail], range(len(front) + 1, len(front) + len(tail), 2)
    context = sum(part.size for part in parts) - sum(parts[i].size for i in answers)
    weights = [self._task.context_weight / context] * len(parts)
    for i in answers:
      weights[i] = 1 / (len(answers) * parts[i].size)
    weighed = (part._replace(weight=w) for part, w in zip(parts, weights, strict=True))
    return Example(tuple(weighed), frozenset(answers))
