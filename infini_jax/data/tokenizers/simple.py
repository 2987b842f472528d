"""Tokenizers that need no library: bytes, and the words of a synthetic task."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from infini_jax.data.tokenizers.base import encode_apart, save_template, within
from infini_jax.data.tokenizers.templates import Template
from infini_jax.digests import short_hash
from infini_jax.files import write_bytes


class ByteTokenizer:
  """UTF-8 bytes as ids 0 to 255; id 256 is both bos and eos."""

  template: Template | None = None
  file = "tokenizer.bytes"
  size = 257
  bos = eos = 256
  special: Mapping[str, int] = {"<|document|>": 256}
  fingerprint = short_hash(b"bytes")

  def encode(self, text: str) -> np.ndarray:
    """One id for each byte."""
    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)

  def encode_marked(self, text: str) -> np.ndarray:
    """The same; `<|document|>` is id 256."""
    return encode_apart(self, text)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of the ids; bytes that are not UTF-8 become the replacement character."""
    kept = within(ids, 256)
    return kept.astype(np.uint8).tobytes().decode("utf-8", "replace")

  def count_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
    """Each id of a byte counts 1."""
    return len(within(ids, 256))

  def bytes_of(self, id: int) -> bytes:
    """The byte."""
    return within([id], 256).astype(np.uint8).tobytes()

  def save(self, folder: Path) -> None:
    """Writes a file whose name identifies this tokenizer."""
    save_template(self.template, folder)
    write_bytes(folder / self.file, b"one id per UTF-8 byte, 256 between documents\n")


class WordTokenizer:
  """A vocabulary of a short list of pieces, for a synthetic task.

  The longest matching piece is used. A character where no piece matches becomes the id of
  `<unknown>`.
  """

  file = "tokenizer.words.json"
  first = ("<s>", "<unknown>")
  special: Mapping[str, int] = {"<s>": 0}
  template: Template | None = None

  def __init__(self, pieces: Sequence[str]):
    self._pieces = [*self.first, *pieces]
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    longest_first = sorted(map(re.escape, pieces), key=len, reverse=True)
    self._pattern = re.compile("|".join([*longest_first, "."]), re.DOTALL)
    self.size = len(self._pieces)
    self.bos = self.eos = 0
    self.fingerprint = short_hash(json.dumps(self._pieces).encode())

  def encode(self, text: str) -> np.ndarray:
    """One id for each piece."""
    return np.array([self._ids.get(p, 1) for p in self._pattern.findall(text)], np.int32)

  def encode_marked(self, text: str) -> np.ndarray:
    """The same; `<s>` is id 0."""
    return encode_apart(self, text)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of the pieces, joined."""
    kept = within(ids, self.size).tolist()
    return "".join(self._pieces[i] for i in kept if i >= len(self.first))

  def count_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
    """The UTF-8 bytes of the pieces; each piece is whole characters."""
    return len(self.decode(ids).encode())

  def bytes_of(self, id: int) -> bytes:
    """The piece."""
    return self.decode([id]).encode()

  def save(self, folder: Path) -> None:
    """Writes the pieces."""
    save_template(self.template, folder)
    write_bytes(folder / self.file, json.dumps(self._pieces[len(self.first) :]).encode())
