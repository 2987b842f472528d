"""SentencePiece models: the only file that imports the package sentencepiece."""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from infini_jax.config import InputError
from infini_jax.data.tokenizers.base import (
  FURTHEST,
  encode_apart,
  plain_text,
  save_template,
  within,
  without_marks,
)
from infini_jax.data.tokenizers.failing import one_line
from infini_jax.data.tokenizers.marks import NAME_THEM, added_tokens, declared_marks, read_object
from infini_jax.data.tokenizers.templates import Template, find_template
from infini_jax.digests import short_hash
from infini_jax.files import write_bytes

SPACE = "\u2581"  # how SentencePiece writes a space in its pieces
APART = "\U0010ffff"  # a character that is in no vocabulary, so that no piece crosses it
LINE = 4096  # the most characters of a training line; SentencePiece drops much longer lines
CONTROL, USER = 3, 4  # types of pieces: text never gives the first, and always gives the second
UNKNOWN, BYTE = 2, 6


class SentencePieceTokenizer:
  """A SentencePiece model.

  A model trained by `train_sentencepiece` decodes the ids of any text to exactly that text. If bos
  or eos is missing, the other one is used for both.

  Raises:
    InputError: the bytes are not a SentencePiece model, or it has neither bos nor eos.
  """

  file = "tokenizer.model"
  template: Template | None = None

  def __init__(self, model: bytes, name: str = "SentencePiece model"):
    self._model, self._processor = model, _opened(model, name)
    self.size = self._processor.get_piece_size()
    bos, eos = self._processor.bos_id(), self._processor.eos_id()
    if bos < 0 and eos < 0:
      raise InputError(f"{name}: has neither bos nor eos; {NAME_THEM}")
    self.bos, self.eos = (bos if bos >= 0 else eos), (eos if eos >= 0 else bos)
    self.fingerprint = short_hash(model)
    every = list(range(self.size))
    special = np.array(self._processor.is_control(every)) | self._processor.is_unknown(every)
    self._is_text: np.ndarray = ~special
    marked = {*np.flatnonzero(self._processor.is_control(every)).tolist(), self.bos, self.eos}
    self.special = {self.piece(id): id for id in sorted(marked)}
    # A literal U+2581 would be decoded as a space: byte pieces encode it, if the model has them.
    pieces = [f"<0x{byte:02X}>" for byte in SPACE.encode()]
    ids = [self._processor.piece_to_id(piece) for piece in pieces]
    self._space_bytes = ids if all(self._processor.is_byte(ids)) else None

  @classmethod
  def load(cls, file: Path, raw: Mapping[str, Any] | None = None) -> "SentencePieceTokenizer":
    """Reads a model, with the tokens that files next to it add and the marks that they declare.

    Both are written into the model. `raw` is the content of config.json, if it was read already.
    Added tokens with ids beyond the embedding are left out.
    """
    model = file.read_bytes()
    loaded = cls(_with_declared(model, file, raw), str(file))
    loaded.template = find_template(file.parent)
    return loaded

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text; names of pieces such as `<s>` in the text are ordinary text."""
    what = f"the tokenizer fails on a text of {len(text):,} characters"
    with one_line(what, "leave the text out, divide it, or choose another tokenizer"):
      ids = self._encode(plain_text(text))
    return without_marks(np.asarray(ids, np.int32), self.bos, self.eos)

  def encode_marked(self, text: str) -> np.ndarray:
    """The same, but the names of control pieces such as `<s>` become these pieces."""
    return encode_apart(self, text)

  def _encode(self, text: str) -> list[int]:
    if self._space_bytes is None or SPACE not in text:
      return self._processor.encode(text)
    first, *others = text.split(SPACE)
    ids, apart = self._processor.encode(first), len(self._processor.encode(APART))
    for part in others:  # not at the start of a text, where some models add a space
      ids += self._space_bytes + self._processor.encode(APART + part)[apart:]
    return ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of the ids; bytes that are not UTF-8 become the replacement character."""
    kept = within(ids, self.size)
    return self._processor.decode(kept[self._is_text[kept]].tolist())

  def count_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
    """The bytes of the text; byte pieces at its end may be part of a character, and all count."""
    kept = within(ids, self.size)
    whole = len(kept)
    while whole and self._processor.is_byte(int(kept[whole - 1])):
      whole -= 1
    return len(self.decode(kept[:whole]).encode()) + len(kept) - whole

  def bytes_of(self, id: int) -> bytes:
    """The piece with spaces, or the byte of a byte piece."""
    if not 0 <= id < self.size or not self._is_text[id]:
      return b""
    piece = self.piece(id)
    if self._processor.is_byte(id):
      return bytes([int(piece[1:-1], 16)])
    return piece.replace(SPACE, " ").encode()

  def piece(self, id: int) -> str:
    """The piece that the vocabulary has for an id, with U+2581 for a space."""
    return self._processor.id_to_piece(id)

  def save(self, folder: Path) -> None:
    """Writes the model."""
    save_template(self.template, folder)
    write_bytes(folder / self.file, self._model)


def train_sentencepiece(texts: Iterable[str], size: int, out_file: Path) -> None:
  """Trains a SentencePiece model of `size` pieces on all of `texts`, and writes it to `out_file`.

  The model is byte-pair encoding with byte fallback. Nothing is normalized, and several spaces
  (indentation) may become one piece. Decoding therefore gives exactly the text that was encoded.

  Raises:
    InputError: there is no text, or the size does not suit the texts.
  """
  lines = _lines(texts)
  first = next(lines, None)
  if first is None:
    raise InputError(f"tokenizer train:{size}: no training text to learn it from; add text")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain((first,), lines),
      model_writer=model,
      vocab_size=size,
      model_type="bpe",
      byte_fallback=True,
      character_coverage=0.9995,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=["\n", "\t"],
      max_sentence_length=4 * LINE,
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      num_threads=4,  # fixed, because the model records it: every machine writes the same file
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = " ".join(str(error).split()).rpartition("] ")[2]
    raise InputError(
      f"tokenizer train:{size}: this size does not suit the corpus, choose another ({reason})"
    ) from None
  write_bytes(out_file, model.getvalue())


def sentencepiece_model(
  pieces: Iterable[tuple[str, float, int]], bos: str, eos: str, add_space: bool
) -> bytes:
  """The SentencePiece model, serialized, of a byte-pair vocabulary of another file format.

  Args:
    pieces: text, score and type (as SentencePiece numbers types) of each piece, in order of ids.
    bos: the piece that begins a document.
    eos: the piece that ends a document.
    add_space: whether a space is added before each text.

  Raises:
    InputError: protobuf is missing or too old.
  """
  model = _model_proto()
  for piece, score, kind in pieces:
    model.pieces.add(piece=piece, score=score, type=kind)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = any(piece.type == piece.BYTE for piece in model.pieces)
  trainer.bos_piece, trainer.eos_piece = bos, eos
  normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = add_space, False
  return model.SerializeToString(deterministic=True)


def _opened(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
  processor = sentencepiece.SentencePieceProcessor()
  with one_line(f"{name}: not a SentencePiece model", "give a .model file"):
    processor.LoadFromSerializedProto(model)
  return processor


def _with_declared(model: bytes, file: Path, raw: Mapping[str, Any] | None) -> bytes:
  """The model with the tokens and marks of the files next to it; unchanged if it has them all."""
  processor = _opened(model, str(file))
  pieces = [processor.id_to_piece(id) for id in range(processor.get_piece_size())]
  raw = read_object(file.parent / "config.json") if raw is None else raw
  added = _added(pieces, file, raw.get("vocab_size"))
  ids = {piece: id for id, piece in enumerate(pieces)} | {t: id for id, (t, _) in added.items()}
  declared = declared_marks(ids, file, raw)
  own = [id if id >= 0 else None for id in (processor.bos_id(), processor.eos_id())]
  ends_turns = declared.ends_turns and own[1] is not None  # a turn is not a document
  marks = {
    "bos": own[0] if declared.bos is None else declared.bos,
    "eos": own[1] if declared.eos is None or ends_turns else declared.eos,
  }
  if not added and [*marks.values()] == own:
    return model
  made = _model_proto(model)
  kinds = [piece.type for piece in made.pieces]
  size = 1 + max(added, default=len(pieces) - 1)
  for id in range(len(pieces), size):
    token, special = added.get(id, (f"<no token {id}>", True))
    made.pieces.add(piece=token.replace(" ", SPACE), type=CONTROL if special else USER)
  for mark, found in marks.items():
    if found is None:
      continue  # the other is used for both
    piece = made.pieces[found]
    if found < len(kinds) and kinds[found] in (UNKNOWN, BYTE):
      raise InputError(
        f"{file}: {mark}, {piece.piece!r}, also means text there; declare another {mark}_token"
      )
    piece.type = CONTROL
    setattr(made.trainer_spec, f"{mark}_piece", piece.piece)
  return made.SerializeToString(deterministic=True)


def _added(pieces: list[str], file: Path, vocab_size: object) -> dict[int, tuple[str, bool]]:
  """The tokens that files next to the model add after its pieces, up to the embedding's size."""
  ids = {piece: id for id, piece in enumerate(pieces)}
  more: dict[int, tuple[str, bool]] = {}
  for id, (token, special) in added_tokens(file.parent).items():
    piece = token.replace(" ", SPACE)
    there = pieces[id] if id < len(pieces) else piece
    if there != piece or ids.get(piece, id) != id:
      said = f"id {id} is {there!r}" if there != piece else f"it is {ids[piece]}"
      raise InputError(
        f"{file.parent}: its added token {token!r} has the id {id}, but {said} in {file.name}; "
        f"correct one of them"
      )
    if id >= len(pieces) and (type(vocab_size) is not int or id < vocab_size):
      more[id] = token, special
  if more and max(more) > len(pieces) + FURTHEST:
    raise InputError(
      f"{file.parent}: its added token {more[max(more)][0]!r} has the id {max(more)}, far behind "
      f"the {len(pieces)} of {file.name}; correct it"
    )
  return more


def _model_proto(model: bytes | None = None) -> Any:
  """A model as an editable message of protobuf: this one, or an empty one."""
  try:
    from sentencepiece import sentencepiece_model_pb2 as proto
  except Exception as error:  # protobuf raises an error class of its own if it is too old
    raise InputError(
      f"a SentencePiece model cannot be written ({' '.join(str(error).split())}): pip install "
      f"--upgrade protobuf"
    ) from None
  made = proto.ModelProto()  # type: ignore[attr-defined]  # protobuf defines it on import
  if model is not None:
    made.ParseFromString(model)
  return made


def _lines(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    for line in text.split("\n"):
      for start in range(0, len(line), LINE):
        yield line[start : start + LINE]
