"""A Hugging Face `tokenizer.json`: the only file that imports the package tokenizers."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from infini_jax.config import InputError
from infini_jax.data.tokenizers.base import plain_text, save_template, within, without_marks
from infini_jax.data.tokenizers.failing import one_line
from infini_jax.data.tokenizers.json_file import TokenizerJson
from infini_jax.data.tokenizers.marks import Declared, declared_marks, find_marks
from infini_jax.data.tokenizers.templates import Template, find_template, load_template
from infini_jax.digests import short_hash
from infini_jax.files import write_bytes

BYTE = re.compile("<0x[0-9A-F]{2}>")
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE keeps
OTHER = [byte for byte in range(256) if byte not in VISIBLE]
LEVEL = {chr(byte): byte for byte in VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(OTHER)}
CUT = "\ufffd"  # a decoder writes it for bytes that are not a whole character


class HuggingFaceTokenizer:
  """A tokenizer of a `tokenizer.json`.

  Without `marks`, bos and eos are its special tokens of a usual name. Random parts (dropout) are
  off. `save` writes the marks into a second file.

  Raises:
    InputError: the content is not a tokenizer.json, or its marks cannot be found.
  """

  file, marks_file = "tokenizer.json", "tokenizer.marks.json"
  template: Template | None = None

  def __init__(
    self,
    content: bytes | TokenizerJson,
    name: str = "tokenizer.json",
    marks: tuple[int, int] | None = None,
  ):
    parsed = TokenizerJson(content, name) if isinstance(content, bytes) else content
    marks = marks or find_marks(parsed.ids, parsed.special, Declared(), name)
    if lacking := set(marks).difference(parsed.ids.values()):
      raise InputError(f"{name}: has no id {min(lacking)}, but its marks name it; correct them")
    with one_line(f"{name}: not a Hugging Face tokenizer.json", "download it again"):
      self._tokenizer = tokenizers.Tokenizer.from_str(parsed.sealed(marks))
    self._content, (self.bos, self.eos) = parsed.content, marks
    self._tokenizer.encode_special_tokens = True
    self.size = 1 + max(parsed.ids.values())
    self.special = {n: id for n, id in parsed.ids.items() if n in parsed.special or id in marks}
    own = b"" if marks == parsed.first_marks() else repr(marks).encode()  # as in older versions
    own += b"gaps" * parsed.has_gaps
    self.fingerprint = short_hash(parsed.content + own)

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text; names of special tokens in the text are ordinary text."""
    what = f"the tokenizer fails on a text of {len(text):,} characters"
    with one_line(what, "leave the text out, divide it, or choose another tokenizer"):
      (found,) = self._tokenizer.encode_batch_fast([plain_text(text)], add_special_tokens=False)
    ids = found.ids
    return without_marks(np.asarray(ids, np.int32), self.bos, self.eos)

  def encode_marked(self, text: str) -> np.ndarray:
    """The ids of a text; names of special tokens in the text are these tokens."""
    what = f"the tokenizer fails on a text of {len(text):,} characters"
    with one_line(what, "leave the text out, divide it, or choose another tokenizer"):
      ids = self._marked.encode(plain_text(text), add_special_tokens=False).ids
    return np.asarray(ids, np.int32)

  @functools.cached_property
  def _marked(self) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(TokenizerJson(self._content, "tokenizer.json").open())

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text that the tokenizer's own decoder gives for the ids that are not special."""
    kept = within(ids, self.size)
    kept = kept[(kept != self.bos) & (kept != self.eos)]
    return self._tokenizer.decode(kept.tolist(), skip_special_tokens=True)

  def count_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
    """The bytes of the text; byte tokens at its end may be part of a character, and all count."""
    kept = [id for id in within(ids, self.size).tolist() if id not in (self.bos, self.eos)]
    whole = len(kept)
    while whole and CUT in self._tokenizer.decode(kept[whole - 1 : whole]):
      whole -= 1
    tail = sum(len(self.bytes_of(id)) for id in kept[whole:])
    return len(self.decode(kept[:whole]).encode()) + tail

  def bytes_of(self, id: int) -> bytes:
    """What the decoder adds for the token behind another one, or the bytes that it means."""
    once, twice = self.decode([id]), self.decode([id, id])
    if CUT not in once:
      return twice.removeprefix(once).encode()
    token, kinds = str(self._tokenizer.id_to_token(id)), str(self._tokenizer.decoder)
    if "ByteFallback" in kinds and BYTE.fullmatch(token):
      return bytes([int(token[1:-1], 16)])
    if "ByteLevel" in kinds and all(character in LEVEL for character in token):
      return bytes(LEVEL[character] for character in token)
    return token.encode()

  def save(self, folder: Path) -> None:
    """Writes the tokenizer.json as it was read, its marks, and its chat template."""
    save_template(self.template, folder)
    write_bytes(folder / self.marks_file, json.dumps((self.bos, self.eos)).encode())
    write_bytes(folder / self.file, self._content)

  @classmethod
  def load(cls, file: Path) -> "HuggingFaceTokenizer":
    """Reads a tokenizer.json, with the marks that a file next to it records or declares."""
    if not (marks := cls._recorded(file)):
      return cls.with_declared(file.read_bytes(), file)
    loaded = cls(file.read_bytes(), str(file), marks)
    loaded.template = load_template(file.parent) or find_template(file.parent)
    return loaded

  @classmethod
  def with_declared(
    cls, content: bytes, file: Path, raw: Mapping[str, Any] | None = None
  ) -> "HuggingFaceTokenizer":
    """The tokenizer of a file's content, with the marks that the files next to it declare.

    `raw` is the content of config.json, if it was read already.
    """
    parsed = TokenizerJson(content, str(file))
    declared = declared_marks(parsed.ids, file, raw)
    made = cls(parsed, str(file), find_marks(parsed.ids, parsed.special, declared, str(file)))
    made.template = find_template(file.parent)
    return made

  @classmethod
  def load_saved(cls, file: Path) -> "HuggingFaceTokenizer":
    """Reads what `save` wrote, also in older versions, which did not record all marks."""
    parsed, marks = TokenizerJson(file.read_bytes(), str(file)), cls._recorded(file)
    if marks is None and parsed.has_gaps:
      raise InputError(
        f"{file}: was saved when ids of added tokens were other than in the file; prepare the "
        f"corpus again, or convert the model again"
      )
    return cls(parsed, str(file), marks or parsed.first_marks())

  @classmethod
  def _recorded(cls, file: Path) -> tuple[int, int] | None:
    marks_file = file.with_name(cls.marks_file)
    if not marks_file.exists():
      return None
    try:
      bos, eos = json.loads(marks_file.read_bytes())
      return int(bos), int(eos)
    except (ValueError, TypeError):
      raise InputError(f"{marks_file}: not two ids; copy the tokenizer again") from None
