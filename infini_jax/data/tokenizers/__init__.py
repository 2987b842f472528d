"""Tokenizers with one small interface: bytes, SentencePiece, Hugging Face."""

import json
from pathlib import Path

from infini_jax.config import InputError
from infini_jax.data.tokenizers.base import Tokenizer, encode_named, text_of
from infini_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from infini_jax.data.tokenizers.long import count_words, encode_document
from infini_jax.data.tokenizers.pieces import (
  SentencePieceTokenizer,
  sentencepiece_model,
  train_sentencepiece,
)
from infini_jax.data.tokenizers.simple import ByteTokenizer, WordTokenizer
from infini_jax.data.tokenizers.templates import Template, find_template, load_template
from infini_jax.paths import local

__all__ = [
  "OWN",
  "SPECS",
  "ByteTokenizer",
  "HuggingFaceTokenizer",
  "SentencePieceTokenizer",
  "Template",
  "Tokenizer",
  "WordTokenizer",
  "count_words",
  "encode_document",
  "encode_named",
  "find_template",
  "is_saved",
  "load_saved",
  "load_tokenizer",
  "sentencepiece_model",
  "text_of",
  "train_sentencepiece",
  "train_size",
]

SPECS = "bytes, train:SIZE, sentencepiece:FILE or huggingface:FILE"
OWN = "run"  # in a config: the vocabulary of the run; in a new run, that of train.start_from


def load_tokenizer(spec: str) -> Tokenizer:
  """The tokenizer of a spec: `bytes`, `sentencepiece:FILE` or `huggingface:FILE`.

  Raises:
    InputError: an unknown spec; a file that is missing or of another kind; or `train:SIZE`, because
      `prepare` trains such a tokenizer and saves it in the store.
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
  path = local(file, f"tokenizer {kind}")
  try:
    if path.exists() and not path.is_file():
      raise InputError(f"tokenizer {spec!r}: is a folder or a pipe, not a file; choose {SPECS}")
    if kind == "huggingface":
      return HuggingFaceTokenizer.load(path)
    return SentencePieceTokenizer.load(path)
  except OSError as error:
    raise InputError(f"tokenizer {spec!r}: {error.strerror}; choose {SPECS}") from None


def is_saved(folder: Path) -> bool:
  """Whether `save` came to its end there: it writes this file last."""
  kinds = (ByteTokenizer, WordTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
  return any((folder / kind.file).exists() for kind in kinds)


def load_saved(folder: Path) -> Tokenizer:
  """The tokenizer that `save` wrote into a folder, with its chat template.

  Raises:
    InputError: the folder holds none.
  """
  tokenizer = _load_saved(folder)
  tokenizer.template = load_template(folder)
  return tokenizer


def _load_saved(folder: Path) -> Tokenizer:
  if (folder / ByteTokenizer.file).exists():
    return ByteTokenizer()
  if (folder / WordTokenizer.file).exists():
    return WordTokenizer(json.loads((folder / WordTokenizer.file).read_text()))
  if (file := folder / SentencePieceTokenizer.file).exists():
    return SentencePieceTokenizer(file.read_bytes(), name=str(file))
  if (file := folder / HuggingFaceTokenizer.file).exists():
    return HuggingFaceTokenizer.load_saved(file)
  raise InputError(f"{folder}: holds no saved tokenizer; prepare the corpus again")


def train_size(spec: str) -> int | None:
  """SIZE of a spec `train:SIZE`; None for any other spec.

  Raises:
    InputError: SIZE is not a number.
  """
  kind, _, size = spec.partition(":")
  if kind != "train":
    return None
  if not size.isdecimal():
    raise InputError(
      f"tokenizer {spec!r}: SIZE is a number of vocabulary pieces, such as train:4096"
    )
  return int(size)
