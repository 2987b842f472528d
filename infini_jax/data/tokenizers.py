"""Tokenizers behind one small interface: bytes, SentencePiece, Hugging Face."""

import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers as huggingface

from infini_jax.config import InputError

BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<|startoftext|>")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")
SPECS = "bytes, train:SIZE, sentencepiece:FILE or huggingface:FILE"
OWN = "run"  # in a config: the vocabulary of the run, or at first of the one that it starts from
SPACE = "\u2581"  # how SentencePiece writes a space in its pieces
APART = "\U0010ffff"  # a character that no vocabulary holds: no piece reaches across it
LINE = 4096  # characters of a training line at most; SentencePiece drops what is much longer


class Tokenizer(Protocol):
  """Text to ids and back. `bos` opens a document and `eos` ends it; they may be the same id."""

  size: int  # ids are 0 <= id < size
  bos: int
  eos: int
  fingerprint: str  # a short hash of its content

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, int32, shape (n,), without bos and eos."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of any ids; special ids and ids out of range give ''."""
    ...

  def save(self, folder: Path) -> None:
    """Writes one file into a folder, which is made if need be, for `load_saved`."""
    ...


class ByteTokenizer:
  """UTF-8 bytes; id 256 stands between documents."""

  file = "tokenizer.bytes"
  size = 257
  bos = eos = 256
  fingerprint = hashlib.blake2b(b"bytes", digest_size=8).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """One id for each byte."""
    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Bytes that are not UTF-8 become the replacement character."""
    kept = _within(ids, 256)
    return kept.astype(np.uint8).tobytes().decode("utf-8", "replace")

  def save(self, folder: Path) -> None:
    """Writes a file whose name says it all."""
    _write(folder / self.file, b"one id per UTF-8 byte, 256 between documents\n")


class SentencePieceTokenizer:
  """A SentencePiece model.

  A model trained by `train_sentencepiece` gives back any text exactly. A model that lacks bos or
  eos uses the other for both.

  Raises:
    InputError: no SentencePiece model, or one with neither bos nor eos.
  """

  file = "tokenizer.model"

  def __init__(self, model: bytes, name: str = "SentencePiece model"):
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
    except RuntimeError:
      raise InputError(f"{name}: not a SentencePiece model; give a .model file") from None
    self.size = self._processor.get_piece_size()
    bos, eos = self._processor.bos_id(), self._processor.eos_id()
    if bos < 0 and eos < 0:
      raise InputError(f"{name}: has neither bos nor eos; train one with tokenizer train:SIZE")
    self.bos, self.eos = (bos if bos >= 0 else eos), (eos if eos >= 0 else bos)
    self.fingerprint = hashlib.blake2b(model, digest_size=8).hexdigest()
    every = list(range(self.size))
    special = np.array(self._processor.is_control(every)) | self._processor.is_unknown(every)
    self._is_text: np.ndarray = ~special
    # A literal U+2581 would come back as a space: its bytes are written instead, where there are.
    pieces = [f"<0x{byte:02X}>" for byte in SPACE.encode()]
    ids = [self._processor.piece_to_id(piece) for piece in pieces]
    self._space_bytes = ids if all(self._processor.is_byte(ids)) else None

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text; pieces named like <s> in it are ordinary text."""
    if self._space_bytes is None or SPACE not in text:
      return np.asarray(self._processor.encode(text), np.int32)
    first, *others = text.split(SPACE)
    ids, apart = self._processor.encode(first), len(self._processor.encode(APART))
    for part in others:  # which begins no text: some models put a space in front of what does
      ids += self._space_bytes + self._processor.encode(APART + part)[apart:]
    return np.asarray(ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Bytes that are not UTF-8 become the replacement character."""
    kept = _within(ids, self.size)
    return self._processor.decode(kept[self._is_text[kept]].tolist())

  def piece(self, id: int) -> str:
    """What stands in the vocabulary for an id; a space is U+2581 there."""
    return self._processor.id_to_piece(id)

  def save(self, folder: Path) -> None:
    """Writes the model."""
    _write(folder / self.file, self._model)


class HuggingFaceTokenizer:
  """A `tokenizer.json`; bos and eos are found among the usual names, or given by `marks`.

  Marks are kept in a file beside the tokenizer's own.

  Raises:
    InputError: no such file format, or no token of a usual name.
  """

  file, marks_file = "tokenizer.json", "tokenizer.marks.json"

  def __init__(
    self, content: bytes, name: str = "tokenizer.json", marks: tuple[int, int] | None = None
  ):
    self._content, self._marks = content, marks
    try:
      self._tokenizer = huggingface.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the binding raises plain Exception
      raise InputError(
        f"{name}: not a Hugging Face tokenizer.json ({' '.join(str(error).split())})"
      ) from None
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    # A corpus that speaks of <|endoftext|> must not end its document there.
    self._tokenizer.encode_special_tokens = True
    bos, eos = marks or (self._find(BOS_NAMES), self._find(EOS_NAMES))
    bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
    if bos is None or eos is None:
      raise InputError(
        f"{name}: none of its tokens is {' '.join(dict.fromkeys(BOS_NAMES + EOS_NAMES))}; "
        f"add one of them to its added_tokens"
      )
    self.bos, self.eos = bos, eos
    self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    own = content if marks is None else content + repr(marks).encode()
    self.fingerprint = hashlib.blake2b(own, digest_size=8).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text; names of special tokens in it are ordinary text."""
    return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """What the tokenizer's own decoder makes of the ids that are not special."""
    kept = _within(ids, self.size)
    kept = kept[(kept != self.bos) & (kept != self.eos)]
    return self._tokenizer.decode(kept.tolist(), skip_special_tokens=True)

  def save(self, folder: Path) -> None:
    """Writes the tokenizer.json as it was read, and its marks, if they were given."""
    if self._marks is not None:
      _write(folder / self.marks_file, json.dumps(self._marks).encode())
    _write(folder / self.file, self._content)

  @classmethod
  def load(cls, file: Path) -> "HuggingFaceTokenizer":
    """Reads a tokenizer.json, and its marks where they lie beside it."""
    marks_file = file.with_name(cls.marks_file)
    marks = tuple(json.loads(marks_file.read_text())) if marks_file.exists() else None
    return cls(file.read_bytes(), str(file), marks)

  def _find(self, names: Iterable[str]) -> int | None:
    ids = (self._tokenizer.token_to_id(name) for name in names)
    return next((id for id in ids if id is not None), None)


class WordTokenizer:
  """A short list of pieces, and nothing else: the vocabulary of a synthetic task.

  The longest piece wins; what no piece begins with becomes the id `unknown`.
  """

  file = "tokenizer.words.json"
  special = ("<s>", "<unknown>")

  def __init__(self, pieces: Sequence[str]):
    self._pieces = [*self.special, *pieces]
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    longest_first = sorted(map(re.escape, pieces), key=len, reverse=True)
    self._pattern = re.compile("|".join([*longest_first, "."]), re.DOTALL)
    self.size = len(self._pieces)
    self.bos = self.eos = 0
    self.fingerprint = hashlib.blake2b(json.dumps(self._pieces).encode(), digest_size=8).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """One id for each piece."""
    return np.array([self._ids.get(p, 1) for p in self._pattern.findall(text)], np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The pieces, one after the other."""
    kept = _within(ids, self.size).tolist()
    return "".join(self._pieces[i] for i in kept if i >= len(self.special))

  def save(self, folder: Path) -> None:
    """Writes the pieces."""
    _write(folder / self.file, json.dumps(self._pieces[len(self.special) :]).encode())


def load_tokenizer(spec: str) -> Tokenizer:
  """The tokenizer of a spec: `bytes`, `sentencepiece:FILE` or `huggingface:FILE`.

  Raises:
    InputError: another spec, a file that is missing or not what the spec says. `train:SIZE` is
      one of these: such a tokenizer comes out of `prepare`, saved in its store.
  """
  kind, _, file = spec.partition(":")
  if spec == OWN:
    raise InputError(f"tokenizer {spec!r}: no run yet; set config.train.start_from, or {SPECS}")
  if spec == "bytes":
    return ByteTokenizer()
  if kind == "train":
    raise InputError(f"tokenizer {spec!r}: is trained by `prepare`, load it from the store")
  if kind not in ("sentencepiece", "huggingface") or not file:
    raise InputError(f"tokenizer {spec!r}: choose {SPECS}")
  try:
    if kind == "huggingface":
      return HuggingFaceTokenizer.load(Path(file))
    return SentencePieceTokenizer(Path(file).read_bytes(), name=file)
  except OSError as error:
    raise InputError(f"tokenizer {spec!r}: {error.strerror}; choose {SPECS}") from None


def load_saved(folder: Path) -> Tokenizer:
  """The tokenizer that `save` wrote into a folder.

  Raises:
    InputError: the folder holds none.
  """
  if (folder / ByteTokenizer.file).exists():
    return ByteTokenizer()
  if (folder / WordTokenizer.file).exists():
    return WordTokenizer(json.loads((folder / WordTokenizer.file).read_text()))
  if (file := folder / SentencePieceTokenizer.file).exists():
    return SentencePieceTokenizer(file.read_bytes(), name=str(file))
  if (file := folder / HuggingFaceTokenizer.file).exists():
    return HuggingFaceTokenizer.load(file)
  raise InputError(f"{folder}: holds no saved tokenizer; prepare the corpus again")


def train_size(spec: str) -> int | None:
  """SIZE of a spec `train:SIZE`, None of any other spec.

  Raises:
    InputError: SIZE is not a number.
  """
  kind, _, size = spec.partition(":")
  if kind != "train":
    return None
  if not size.isdecimal():
    raise InputError(f"tokenizer {spec!r}: SIZE is a number of pieces, such as train:4096")
  return int(size)


def train_sentencepiece(texts: Iterable[str], size: int, out_file: Path) -> None:
  """Trains a SentencePiece model of `size` pieces on all of `texts`, and writes it to `out_file`.

  Byte-pair encoding with byte fallback. Nothing is normalized, and runs of spaces may become
  pieces (indentation): decoding gives back any text exactly.

  Raises:
    InputError: the size does not suit the texts.
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
      num_threads=4,  # fixed, for the model records it: every machine trains the same file
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = " ".join(str(error).split()).rpartition("] ")[2]
    raise InputError(
      f"tokenizer train:{size}: this size does not suit the corpus, choose another ({reason})"
    ) from None
  _write(out_file, model.getvalue())


def sentencepiece_model(
  pieces: Iterable[tuple[str, float, int]], bos: str, eos: str, add_space: bool
) -> bytes:
  """The SentencePiece model of a byte-pair vocabulary that was kept in another form.

  Args:
    pieces: by their ids, each with its score and its type as SentencePiece numbers them.
    bos: the piece that opens a document.
    eos: the piece that ends it.
    add_space: whether a text is read as if a space stood in front of it.

  Raises:
    InputError: protobuf is missing or too old.
  """
  try:
    from sentencepiece import sentencepiece_model_pb2 as proto
  except Exception as error:  # protobuf has an error of its own for an old version
    raise InputError(
      f"a SentencePiece model cannot be written ({' '.join(str(error).split())}): pip install "
      f"--upgrade protobuf"
    ) from None
  model = proto.ModelProto()  # type: ignore[attr-defined]  # which protobuf makes on import
  for piece, score, kind in pieces:
    model.pieces.add(piece=piece, score=score, type=kind)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = any(piece.type == piece.BYTE for piece in model.pieces)
  trainer.bos_piece, trainer.eos_piece = bos, eos
  normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = add_space, False
  return model.SerializeToString(deterministic=True)


def _lines(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    for line in text.split("\n"):
      for start in range(0, len(line), LINE):
        yield line[start : start + LINE]


def _within(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
  array = np.asarray(ids, np.int64).reshape(-1)
  return array[(array >= 0) & (array < size)]


def _write(file: Path, content: bytes) -> None:
  """Writes all of the file or nothing: a reader never sees half of it."""
  temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary.write_bytes(content)
  os.replace(temporary, file)
