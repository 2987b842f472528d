"""Conversations in JSON lines or Parquet: a row has messages, or a prompt and its completion."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from infini_jax.config import InputError
from infini_jax.data.sources import jsonl, parquet
from infini_jax.data.sources.base import Corpus, Options, Record, choose_split
from infini_jax.paths import expand

KINDS = {"jsonl": jsonl.open_jsonl, "parquet": parquet.open_parquet}


class Conversation(NamedTuple):
  """The fields that hold the messages, or the prompt and its completion; "" for none."""

  messages: str
  prompt: str = ""
  completion: str = ""

  @property
  def of_whole_files(self) -> bool:
    """The place of a conversation is the number of its line."""
    return True

  @property
  def tells_summaries(self) -> bool:
    """There are none."""
    return False

  @classmethod
  def choose(cls, spec: str, options: Options, there_are: Collection[str]) -> "Conversation":
    """The fields that the options name, else `messages`, else `prompt` and `completion`.

    Raises:
      InputError: the data set has no such field.
    """
    asked = cls(*(options.get(role, "") for role in cls._fields))
    if any(asked[1:]) and not asked.messages:
      chosen = cls("", asked.prompt or "prompt", asked.completion or "completion")
    elif asked.messages or "messages" in there_are:
      chosen = cls(asked.messages or "messages")
    else:
      chosen = cls("", "prompt", "completion")
    missing = [name for name in chosen if name and name not in there_are]
    if missing or (asked.messages and any(asked[1:])):
      what = f"has no field {missing[0]!r}" if missing else "names messages and a prompt"
      raise InputError(
        f"corpus {spec!r}: {what}; name one of {', '.join(there_are)} with ?messages=FIELD, or two "
        f"with ?prompt=FIELD&completion=FIELD"
      )
    return chosen

  def record(self, splits: tuple[str, ...], place: str, row: Mapping[str, Any]) -> Record:
    """The conversation in a row; the text of the record is its messages as JSON.

    Raises:
      InputError: a field is missing, or is not text.
    """
    for field in filter(None, self):
      if row.get(field) is None:
        what = f"field {field!r} is null"
        if field not in row:
          what = f"has no field {field!r}, only {', '.join(row) or 'none'}"
        raise InputError(f"{place}: {what}; complete the row, or take it out")
    if self.messages:
      messages = row[self.messages]
    else:
      for field in (self.prompt, self.completion):
        if not isinstance(row[field], str):
          kind = type(row[field]).__name__
          raise InputError(f"{place}: field {field!r} is not text ({kind}); give a text")
      messages = [
        {"role": "user", "content": row[self.prompt]},
        {"role": "assistant", "content": row[self.completion]},
      ]
    try:
      text = json.dumps(messages)
    except TypeError as error:  # a column of Parquet may hold dates or bytes
      kind = str(error).split()[3]  # Object of type KIND is not JSON serializable
      raise InputError(
        f"{place}: field {self.messages!r}: {kind} is not text; give texts"
      ) from None
    return Record(choose_split(splits, place), place, text)


def open_conversations(spec: str, train: bool = True) -> Corpus:
  """The corpus `jsonl:FILES?messages=FIELD`, or `?prompt=FIELD&completion=FIELD`; parquet: too.

  Args:
    spec: the spec.
    train: whether there must be conversations to train on.

  Raises:
    InputError: another kind of corpus, or an error of the files.
  """
  kind = spec.partition(":")[0]
  if kind not in KINDS:
    raise InputError(
      f"config.data.path={spec!r}: conversations are read from jsonl:FILES or parquet:FILES "
      f"(docs/chat.md); name the files so"
    )
  return dataclasses.replace(KINDS[kind](expand(spec), train, Conversation), spec=spec)
