"""From tokens to text that can be shown: whole characters, without stop strings."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from infini_jax.data import Tokenizer

CONTEXT = 8  # tokens decoded before a new one, because its text can depend on them
UNFINISHED = 3  # the most replacement characters at the end that may become one character
LONGEST = 64  # the most tokens that are decoded again if no character is complete


class Piece(NamedTuple):
  """One generated token, and the text that can be shown now."""

  lane: int
  token: int
  text: str  # empty for half a character, or for the possible beginning of a stop string
  end: str = ""  # why the lane has ended: "document" (eos), "turn", "stop" or "length"


class Writer:
  """The text of one lane, token by token; stop strings must not be empty.

  Args:
    tokenizer: the vocabulary.
    before: the tokens before the first one.
    stop: texts that end it.
    ends: tokens that end it.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    before: Sequence[int],
    stop: Sequence[str] = (),
    ends: Collection[int] = (),
  ):
    self._tokenizer, self._stop, self._ends = tokenizer, tuple(stop), ends
    self._ids = list(before)[-CONTEXT:]
    self._shown = self._whole(tokenizer.decode(self._ids))  # characters of their text
    self._held = ""  # whole characters that may be the beginning of a stop string

  def push(self, token: int, last: bool) -> tuple[str, str]:
    """The text that can be shown now, and why the lane has ended ("" if it has not)."""
    if token in self._ends:
      return self._held, "turn"
    if token == self._tokenizer.eos:
      return self._held, "document"
    self._held += self._new(token)
    places = [at for at in map(self._held.find, self._stop) if at >= 0]
    if places:
      return self._held[: min(places)], "stop"
    if last:
      return self._held, "length"
    kept = max(map(self._begun, self._stop), default=0)
    text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
    return text, ""

  def _new(self, token: int) -> str:
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids)
    whole = self._whole(text) if len(self._ids) < LONGEST else len(text)
    new = text[self._shown : whole]
    self._shown = max(self._shown, whole)
    if whole == len(text):
      self._ids = self._ids[-CONTEXT:]
      self._shown = len(self._tokenizer.decode(self._ids))
    return new

  @staticmethod
  def _whole(text: str) -> int:
    """The length of the text without an incomplete character at its end."""
    return max(len(text.rstrip("\ufffd")), len(text) - UNFINISHED)

  def _begun(self, stop: str) -> int:
    """The number of characters at the end of the held text that may begin this stop string."""
    sizes = range(min(len(stop) - 1, len(self._held)), 0, -1)
    return next((n for n in sizes if self._held.endswith(stop[:n])), 0)
