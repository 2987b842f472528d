"""The interface of every tokenizer, and functions that all of them use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from infini_jax.config import InputError

FURTHEST = 1 << 16  # the most ids between the last piece of a vocabulary and an added token


class Tokenizer(Protocol):
  """Text to ids and back. `bos` begins a document and `eos` ends it; they may be the same id."""

  size: int  # ids are 0 <= id < size
  bos: int
  eos: int
  fingerprint: str  # a short hash of its content

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

  def save(self, folder: Path) -> None:
    """Writes its files into a folder for `load_saved`; makes the folder if it does not exist."""
    ...


def encode_named(tokenizer: Tokenizer, text: str, name: str) -> np.ndarray:
  """The ids of a text, int32, shape (n,); `name` is the text's name in an error.

  Raises:
    InputError: the tokenizer fails on this text.
  """
  try:
    return tokenizer.encode(text)
  except InputError as error:
    raise InputError(f"{name}: {error}" if name else str(error)) from None


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
