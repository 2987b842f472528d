"""The interface of every tokenizer, and functions that all of them use."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.tokenizers.templates import Template

FURTHEST = 1 << 16  # the most ids between the last piece of a vocabulary and an added token


class Tokenizer(Protocol):
  """Text to ids and back. `bos` begins a document and `eos` ends it; they may be the same id."""

  size: int  # ids are 0 <= id < size
  bos: int
  eos: int
  fingerprint: str  # a short hash of its content
  template: Template | None  # how conversations become text, if that is known

  @property
  def special(self) -> Mapping[str, int]:
    """The ids that no text gives, by the names that `encode_marked` reads; bos and eos too."""
    ...

  def encode_marked(self, text: str) -> np.ndarray:
    """As `encode`, but the names of special tokens in the text become these tokens."""
    ...

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, int32, shape (n,), without bos and eos.

    Raises:
      InputError: the text cannot be encoded.
    """
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of any ids; special ids and ids out of range add nothing."""
    ...

  def count_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
    """The UTF-8 bytes of the decoded text; of a character cut at the end, only those in the ids."""
    ...

  def bytes_of(self, id: int) -> bytes:
    """What a token adds inside of a text, maybe a part of a character; nothing if it is special."""
    ...

  def save(self, folder: Path) -> None:
    """Writes its files into a folder for `load_saved`; makes the folder if it does not exist."""
    ...


def text_of(tokenizer: Tokenizer, id: int) -> str:
  """The text of one token: a special token by its name; a part of a character as `\\xe2\\x82`."""
  for name, special in tokenizer.special.items():
    if special == id:
      return name
  return tokenizer.bytes_of(id).decode("utf-8", "backslashreplace")


def encode_named(tokenizer: Tokenizer, text: str, name: str) -> np.ndarray:
  """The ids of a text, int32, shape (n,); `name` is the text's name in an error.

  Raises:
    InputError: the tokenizer fails on this text.
  """
  try:
    return tokenizer.encode(text)
  except InputError as error:
    raise InputError(f"{name}: {error}" if name else str(error)) from None


def encode_apart(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """As `Tokenizer.encode_marked`: the text between two special tokens is encoded on its own."""
  names = tokenizer.special
  longest_first = sorted(map(re.escape, names), key=len, reverse=True)
  pieces = re.split(f"({'|'.join(longest_first)})", text)
  found = (
    np.array([names[piece]], np.int32) if i % 2 else tokenizer.encode(piece)
    for i, piece in enumerate(pieces)
    if piece
  )
  return np.concatenate([np.zeros(0, np.int32), *found])


def save_template(template: Template | None, folder: Path) -> None:
  """Writes the chat template of a tokenizer, if it has one."""
  if template is not None:
    template.save(folder)


def plain_text(text: str) -> str:
  """The text with '?' for lone surrogates, which no encoding of Unicode can write."""
  return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def without_marks(ids: np.ndarray, bos: int, eos: int) -> np.ndarray:
  """Returns the ids of a text unchanged.

  Raises:
    InputError: bos or eos is among them: the vocabulary writes it for unknown text.
  """
  found = ids[(ids == bos) | (ids == eos)]
  if found.size:
    raise InputError(
      f"the text holds what the vocabulary lacks, and its unknown token, id {found[0]}, is also "
      f"bos or eos; choose a tokenizer that holds all characters, such as train:32000 or bytes"
    )
  return ids


def within(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
  """The ids that are in a vocabulary of this size, int64, shape (m,)."""
  array = np.asarray(ids, np.int64).reshape(-1)
  return array[(array >= 0) & (array < size)]
