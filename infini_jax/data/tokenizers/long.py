"""Documents of any length to tokens, with bounded memory.

An encoding needs up to 150 bytes for each character. So a document of more than `LONGEST`
characters is encoded in pieces. They are cut between two lines of text, where tokenizers that split
at newlines have a border too: then the tokens are those of the whole. A text without such a border
is cut at another newline, before a space, or anywhere.
"""

import re
from collections.abc import Iterator

import numpy as np

from infini_jax.data.tokenizers.base import Tokenizer, encode_named

LONGEST = 1 << 24  # the most characters that are encoded at once
PIECE = 1 << 20  # the least characters of a piece, but for the last one
BORDERS = tuple(map(re.compile, (r"(?<=\S\n)(?=\S)", r"(?<=\n)(?=\S)", r"(?<=\S)(?= \S)")))


def encode_document(tokenizer: Tokenizer, text: str, name: str) -> np.ndarray:
  """The ids of a document, int32, shape (n,); `name` is its name in an error.

  Raises:
    InputError: the tokenizer fails on this text.
  """
  if len(text) <= LONGEST:
    return encode_named(tokenizer, text, name)
  found, newline = list[np.ndarray](), encode_named(tokenizer, "\n", name)
  for piece in pieces(text):
    # After a newline, because some tokenizers encode the beginning of a text differently.
    ids = encode_named(tokenizer, "\n" + piece if found else piece, name)
    if found and np.array_equal(ids[: len(newline)], newline):
      ids = ids[len(newline) :]
    elif found:
      ids = encode_named(tokenizer, piece, name)
    found.append(ids)
  return np.concatenate(found)


def pieces(text: str) -> Iterator[str]:
  """The text in pieces of `PIECE` to twice as many characters."""
  first = 0
  while len(text) - first > 2 * PIECE:
    window = first + PIECE, first + 2 * PIECE
    found = (border.search(text, *window) for border in BORDERS)
    cut = next((match.start() for match in found if match), window[1])
    yield text[first:cut]
    first = cut
  yield text[first:]


def count_words(text: str) -> int:
  """The number of words between white space."""
  if len(text) <= LONGEST:
    return len(text.split())
  return sum(1 for _ in re.finditer(r"\S+", text))
