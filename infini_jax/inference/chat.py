"""The record of a session's conversation, from which the next question continues."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.chat.conversation import Chat, open_chat
from infini_jax.data.chat.render import Message
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.digests import short_hash
from infini_jax.inference.lane import Lane
from infini_jax.inference.writing import Piece

Say = Callable[[str], None]  # called with each new piece of an answer


class Told(NamedTuple):
  """The text of a conversation that a session has read and written.

  Attributes:
    position: the tokens of the session's text at its end.
    characters: of the text.
    digest: a hash of the text; empty: it is not known, so a next question reads all again.
    begins: the tokens of other text before the conversation.
  """

  position: int
  characters: int
  digest: str
  begins: int = 0

  @classmethod
  def of(cls, position: int, text: str, begins: int = 0) -> "Told":
    """That of a text."""
    return cls(position, len(text), _digest(text), begins)

  def rest(self, text: str) -> str | None:
    """The rest of a text that begins with this one; None if it does not."""
    same = self.digest and self.digest == _digest(text[: self.characters])
    return text[self.characters :] if same else None


class Asked(NamedTuple):
  """A conversation that waits for its answer.

  Attributes:
    ids: the tokens of it that are still to be read.
    text: all of it, with the beginning of the answer.
    end: the token that ends the answer.
    begins: the tokens of other text before it.
    anew: it begins a new document, without what the session holds.
  """

  ids: np.ndarray
  text: str
  end: int
  begins: int = 0
  anew: bool = False

  def open(self) -> Told:
    """The record of the session until the answer is complete."""
    return Told(0, 0, "", self.begins)


class Answer:
  """An answer while it is written."""

  def __init__(self, asked: Asked, tokenizer: Tokenizer):
    self.text = ""
    self._asked, self._names = asked, {id: name for name, id in tokenizer.special.items()}
    self._drawn, self._is_plain = -1, True

  def add(self, piece: Piece) -> None:
    """Adds the next token."""
    self.text, self._drawn = self.text + piece.text, piece.token
    self._is_plain &= piece.token not in self._names or bool(piece.end)

  def told(self, position: int) -> Told:
    """The record of the session after the answer, at this position of its text."""
    if not self._is_plain:  # the text does not say which tokens were written
      return self._asked.open()
    text = self._asked.text + self.text + self._names.get(self._drawn, "")
    return Told.of(position, text, self._asked.begins)


def rendered(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> tuple[Chat, str]:
  """The template, and the text of messages up to the beginning of an answer.

  Raises:
    InputError: the messages are wrong, the last one is an answer, or the template fails.
  """
  chat = open_chat(tokenizer, template)
  chat.end  # noqa: B018 - it raises if nothing would stop the model
  checked = chat.check(messages, taught=False)
  if checked[-1]["role"] == "assistant":
    raise InputError("messages: the last one is of the assistant; end with a question")
  return chat, chat.render(checked, ask=True)


def asked(chat: Chat, text: str, told: Told | None, lane: Lane, follows: bool) -> Asked:
  """The text that a session reads before it answers.

  Args:
    chat: the template.
    text: of the whole conversation.
    told: the conversation that the session holds; None: none.
    lane: of the session.
    follows: the conversation may begin after other text.

  Raises:
    InputError: the session holds other text, and cannot begin a new document.
  """
  bos = [chat.tokenizer.bos]
  if told is None:
    if not lane.read and lane.unread in ([], bos):
      return Asked(chat.encode(text), text, chat.end, anew=True)
    if not follows:
      raise InputError("the session holds other text: reset() it, and put that text into a message")
    ids = chat.encode(text)
    if ids[:1].tolist() == bos:  # it begins a document, and this one continues
      ids = ids[1:]
    return Asked(ids, text, chat.end, lane.position)
  rest = told.rest(text) if told.position == lane.position else None
  if rest is not None:
    return Asked(chat.goes_on(rest), text, chat.end, told.begins)
  if told.begins:
    raise InputError(
      "the session holds another conversation after its text: ask a fork that was made before"
    )
  return Asked(chat.encode(text), text, chat.end, anew=True)


def _digest(text: str) -> str:
  return short_hash(text.encode("utf-8", "surrogatepass"), size=16)
