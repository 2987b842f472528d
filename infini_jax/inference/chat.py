"""What a session knows of the conversation that it holds, so that the next question reads on."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from infini_jax.config import InputError
from infini_jax.data.chat.conversation import Chat, open_chat
from infini_jax.data.chat.render import Message
from infini_jax.data.tokenizers import Tokenizer

Say = Callable[[str], None]  # called with each new piece of an answer


class Told(NamedTuple):
  """The text of a conversation that a session has read and written.

  Attributes:
    position: the tokens of the session's text at its end.
    characters: of the text.
    digest: a hash of the text; empty: it is not known, so a next question reads all again.
  """

  position: int
  characters: int
  digest: str

  @classmethod
  def of(cls, position: int, text: str) -> "Told":
    """That of a text."""
    return cls(position, len(text), _digest(text))

  def rest(self, text: str) -> str | None:
    """What a text has more than this one; None if it does not begin with it."""
    same = self.digest and self.digest == _digest(text[: self.characters])
    return text[self.characters :] if same else None


def asked(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> tuple[Chat, str]:
  """The template, and the text of messages up to the beginning of an answer.

  Raises:
    InputError: the messages are wrong, the last one is an answer, or the template fails.
  """
  chat = open_chat(tokenizer, template)
  chat.end  # noqa: B018 - it raises if nothing would stop the model
  checked = chat.check(messages)
  if checked[-1]["role"] == "assistant":
    raise InputError("messages: the last one is of the assistant; end with a question")
  return chat, chat.render(checked, ask=True)


def _digest(text: str) -> str:
  return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
