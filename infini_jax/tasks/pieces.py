"""From text to tokens: the pieces of a prompt."""

import functools

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.tasks.example import Span


class Pieces:
  """Encodes pieces of text; the tokens of a piece depend on the text before it.

  Args:
    tokenizer: the tokenizer.
    spec: the spec of the tokenizer, for errors.
    kind: the kind of text, for errors.
    remedy: a tokenizer that can write the text, for errors.
  """

  def __init__(self, tokenizer: Tokenizer, spec: str, kind: str, remedy: str):
    self._tokenizer, self._spec, self._kind, self._remedy = tokenizer, spec, kind, remedy
    self._begins = functools.lru_cache(lambda before: len(tokenizer.encode(before)))

  def span(self, text: str, before: str) -> Span:
    """The tokens that `text` adds after `before`.

    Raises:
      InputError: the tokenizer cannot write it.
    """
    ids = self._tokenizer.encode(before + text)
    ids = ids[self._begins(before) if before else 0 :]
    found = self._tokenizer.decode(ids)
    if found.strip() != text.strip():
      raise InputError(
        f"config.data.tokenizer={self._spec!r} cannot write {self._kind}: {text.strip()!r} comes "
        f"back as {found.strip()!r}; choose {self._remedy}, such as bytes"
      )
    return Span(ids, len(ids))

  def asked(self, leading: np.ndarray, answer: np.ndarray) -> tuple[Span, Span]:
    """The span that leads to an answer, and the answer.

    If the answer begins with a space that is a token of its own, this token moves to the first
    span.

    Args:
      leading: ids, (n,).
      answer: ids, (m,), of a text that is more than space.
    """
    space = 0
    while not self._tokenizer.decode(answer[: space + 1]).strip():
      space += 1
    leading, answer = np.concatenate([leading, answer[:space]]), answer[space:]
    return Span(leading, len(leading)), Span(answer, len(answer))
