"""From messages to tokens, and which of the tokens the assistant says."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.chat.render import PLAIN, Message, plain_tokens, render
from infini_jax.data.tokenizers import Template, Tokenizer
from infini_jax.data.tokenizers.templates import DEFAULT
from infini_jax.paths import local

ROLES = ("system", "user", "assistant", "tool")
FIELD = "config.chat.template"
PROBE = ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answered"})


class Talk(NamedTuple):
  """A conversation as tokens.

  Attributes:
    ids: all tokens, (n,) int32; the first is never a target.
    said: which of them the assistant says, (n,) bool: each answer, with the token that ends it.
  """

  ids: np.ndarray
  said: np.ndarray


class Chat:
  """The chat template of a vocabulary, ready for use.

  Args:
    tokenizer: the vocabulary.
    template: its templates.
    which: the name of the template to use.
    name: its name in errors.

  Raises:
    InputError: there is no template of this name.
  """

  def __init__(
    self, tokenizer: Tokenizer, template: Template, which: str = DEFAULT, name: str = FIELD
  ):
    if which not in template.texts:
      known = ", ".join(f"own:{one}" for one in template.texts)
      raise InputError(f"{name}: the vocabulary has no template {which!r}; choose one of {known}")
    self.tokenizer, self.template = tokenizer, template
    self._text, self._name = template.texts[which], name
    longest_first = sorted(map(re.escape, tokenizer.special), key=len, reverse=True)
    self._special = re.compile("|".join(longest_first))

  @functools.cached_property
  def end(self) -> int:
    """The id of the token that ends an answer: the first special token after its text.

    Raises:
      InputError: the template ends an answer with no special token, or fails.
    """
    text, said = self.render(PROBE), PROBE[1]["content"]
    _, _, after = text.partition(said)
    found = self._special.search(after)
    if found is None or after[: found.start()].strip():
      raise InputError(
        f"{self._name}: ends an answer with {after[:20]!r} and no special token, so nothing would "
        f"stop a model; choose a template that writes eos_token there"
      )
    return self.tokenizer.special[found[0]]

  @functools.cached_property
  def _end_name(self) -> str:
    return next(name for name, id in self.tokenizer.special.items() if id == self.end)

  def render(self, messages: Sequence[Message], ask: bool = False) -> str:
    """The text of a conversation; with `ask` it ends with the beginning of an answer.

    Raises:
      InputError: the template refuses the messages.
    """
    how: dict[str, Any] = {"tokens": self.template.tokens, "date": self.template.date}
    return render(self._text, messages, ask=ask, name=self._name, **how)

  def encode(self, text: str) -> np.ndarray:
    """The tokens of a rendered text, int32."""
    return self.tokenizer.encode_marked(text)

  def goes_on(self, text: str) -> np.ndarray:
    """The tokens of a rendered text that follows a special token, int32."""
    if not text:
      return np.zeros(0, np.int32)
    return self.encode(self._end_name + text)[1:]

  def check(self, messages: Any, taught: bool = True) -> list[dict[str, Any]]:
    """The messages as dicts without empty fields.

    Args:
      messages: a conversation.
      taught: a model learns its answers. Else it may be what a model itself has said, or nothing.

    Raises:
      InputError: they are not a list of messages, a role is unknown, a content is not text, an
        answer that is taught is empty, or a text contains the name of a special token.
    """
    if messages == []:
      raise InputError("messages: the list is empty; give a message or more")
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
      raise InputError("messages: not a list of messages; give objects with role and content")
    return [self._checked(i, message, taught) for i, message in enumerate(messages, 1)]

  def _checked(self, number: int, message: Any, taught: bool) -> dict[str, Any]:
    where = f"message {number}"
    if not isinstance(message, Mapping):
      raise InputError(f"{where}: no object with role and content; repair it")
    kept = {name: value for name, value in message.items() if value is not None}
    role, content = kept.get("role"), kept.get("content")
    if role not in ROLES:
      raise InputError(f"{where}: unknown role {role!r}; choose one of {', '.join(ROLES)}")
    if not isinstance(content, str):
      kind = "missing" if content is None else type(content).__name__
      raise InputError(f"{where}: its content is not text ({kind}); give a text")
    if taught and role == "assistant" and not content.strip():
      raise InputError(f"{where}: the answer is empty; leave the conversation out, or complete it")
    for text in _texts(kept):
      if found := self._special.search(text):
        raise InputError(
          f"{where}: holds {found[0]!r}, a special token of the vocabulary; take it out of the text"
        )
    return kept

  def talks(self, messages: Sequence[Message]) -> list[Talk]:
    """A checked conversation as tokens, up to its last answer.

    It is rendered up to each question and up to each answer; what the second text has more is what
    the assistant says. Some templates write an earlier answer differently when more follows. Then
    each answer becomes a conversation of its own: all before it as the model will see it when it is
    asked, and only this answer counts.

    Raises:
      InputError: there is no answer; the template fails; its question is not the beginning of its
        answer; or it ends an answer with no special token.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
      raise InputError("the conversation has no message of the assistant; add one, or leave it out")
    if (whole := self._talk(messages, turns)) is not None:
      return [whole]
    one_each = (self._talk(messages, [i]) for i in turns)
    return [talk for talk in one_each if talk is not None]

  def _talk(self, messages: Sequence[Message], turns: Sequence[int]) -> Talk | None:
    """The conversation up to the last of these answers; None if its text does not hold them all."""
    last = messages[: turns[-1] + 1]
    text, spans = self.render(last), []
    for i in turns:
      question, answered = self.render(messages[:i], ask=True), self.render(messages[: i + 1])
      if not answered.startswith(question):
        raise InputError(
          f"{self._name}: what it writes before an answer is not the beginning of what it writes "
          f"with the answer, so no model could be asked as it was taught; choose another"
        )
      end = answered.find(self._end_name, len(question)) + len(self._end_name)
      if not answered[len(question) : end].strip():
        raise InputError(f"{self._name}: writes no end of an answer; choose another")
      if not text.startswith(answered[:end]):
        return None
      spans.append((len(question), end))
    return self._tokens(text[: spans[-1][1]], spans)

  def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> Talk:
    """The tokens of a text, and those of its spans.

    A model is asked with the tokens of the question alone. So where a token of the whole text
    crosses into the answer, the text is encoded in pieces, as it will be when the model is asked.
    """
    ids, borders = self.encode(text), [at for span in spans for at in span]
    ends = []
    for border in borders:
      before = self.encode(text[:border])
      if not np.array_equal(ids[: len(before)], before):
        break
      ends.append(len(before))
    if len(ends) < len(borders):
      cuts = zip([0, *borders], borders, strict=False)
      pieces = [
        self.goes_on(text[start:stop]) if start else self.encode(text[:stop])
        for start, stop in cuts
      ]
      ids, ends = np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces]).tolist()
    said = np.zeros(len(ids), bool)
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
      said[start:stop] = True
    return Talk(ids.astype(np.int32), said)


def _texts(value: Any) -> Iterator[str]:
  """All texts in a value of JSON, also the names in it: a template may write each of them."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Iterable):
    of_dict = value.values() if isinstance(value, Mapping) else ()
    for one in (*value, *of_dict):
      yield from _texts(one)


def open_chat(tokenizer: Tokenizer, spec: str = "own", date: str = "") -> Chat:
  """The chat template that a config names.

  Args:
    tokenizer: the vocabulary; its template is the one of the run, if it has one.
    spec: own, own:NAME, plain, file:PATH, or the text of a template.
    date: what a new template will call today, YYYY-MM-DD.

  Raises:
    InputError: the vocabulary has no template, or there is no such file.
  """
  own, kind, rest = tokenizer.template, *spec.partition(":")[::2]
  if own is not None and own.chosen and (own.chosen == spec or spec == "own"):
    if kind == "file" and local(rest, FIELD).is_file():
      _check_same(own.texts[DEFAULT], _read(local(rest, FIELD), spec), spec)
    return Chat(tokenizer, own)
  if kind == "own":
    if own is None:
      raise InputError(
        f"{FIELD}={spec!r}: the vocabulary comes with no chat template; set {FIELD}='plain', or "
        f"file:FILE with one in Jinja (--chat-template of generate, chat and serve)"
      )
    chosen = Chat(tokenizer, own, rest or DEFAULT)
    return Chat(tokenizer, own._replace(texts={DEFAULT: chosen._text}, chosen=spec, date=date))
  names = {id: name for name, id in tokenizer.special.items()}
  marks = plain_tokens(names, tokenizer.bos, tokenizer.eos)
  if spec == "plain":
    return Chat(tokenizer, Template({DEFAULT: PLAIN}, marks, spec, date))
  if kind == "file":
    text = _read(local(rest, FIELD), spec)
  elif "{{" in spec or "{%" in spec:
    text = spec
  else:
    raise InputError(f"{FIELD}={spec!r}: choose own, own:NAME, plain, file:FILE, or Jinja text")
  return Chat(
    tokenizer, Template({DEFAULT: text}, marks | dict(own.tokens if own else {}), spec, date)
  )


def _check_same(kept: str, now: str, spec: str) -> None:
  if kept != now:
    raise InputError(
      f"{FIELD}={spec!r}: the file has changed since the run was made; set {FIELD}='own' for the "
      f"run's own template, or give the new one another name"
    )


def _read(file: Path, spec: str) -> str:
  try:
    return file.read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "not UTF-8 text"
    raise InputError(f"{FIELD}={spec!r}: {reason}; name a file of Jinja text") from None
