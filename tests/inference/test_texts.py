"""Text that is tokenized as it arrives gives the tokens of the whole text."""

import gzip
import io
import json
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np
import pytest
import tokenizers as huggingface

from infini_jax.config import InputError
from infini_jax.data.tokenizers import (
  ByteTokenizer,
  HuggingFaceTokenizer,
  SentencePieceTokenizer,
  train_sentencepiece,
)
from infini_jax.inference import texts
from infini_jax.inference.texts import tokens_of

WORDS = [
  "the",
  "cat",
  "sat",
  "on",
  "a",
  "mat.",
  "  ",
  "été",
  "12",
  "\n",
  "\n\n",
  "\n  ",
  "\t",
  "()",
]


def sample(rng, words=200):
  return "".join(
    w if w.isspace() else w + " " * int(rng.integers(2)) for w in rng.choice(WORDS, words)
  )


def sentencepiece(folder):
  rng = np.random.default_rng(0)
  train_sentencepiece((sample(rng) for _ in range(20)), 320, folder / "tokenizer.model")
  return SentencePieceTokenizer((folder / "tokenizer.model").read_bytes())


def byte_pairs(folder):
  """A tokenizer like GPT-2's: a pattern splits words first."""
  made = huggingface.Tokenizer(huggingface.models.BPE())
  made.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = huggingface.decoders.ByteLevel()
  return trained(made, huggingface.pre_tokenizers.ByteLevel.alphabet())


def prefixed(folder):
  """A tokenizer like Llama 2's: it adds a space in front of a text."""
  made = huggingface.Tokenizer(huggingface.models.BPE(byte_fallback=True, unk_token="<unk>"))
  made.normalizer = huggingface.normalizers.Sequence(
    [huggingface.normalizers.Prepend("▁"), huggingface.normalizers.Replace(" ", "▁")]
  )
  # No piece contains a space inside, as in SentencePiece, although text is not split there.
  made.pre_tokenizer = huggingface.pre_tokenizers.Metaspace(prepend_scheme="never")
  return trained(made, ["\n", "\t"], ["<unk>", *(f"<0x{i:02X}>" for i in range(256))], cut=False)


def trained(made, alphabet, special=(), cut=True):
  rng = np.random.default_rng(0)
  trainer = huggingface.trainers.BpeTrainer(
    vocab_size=400 + 256 * bool(special),
    initial_alphabet=list(alphabet),
    special_tokens=["<s>", "</s>", *special],
    show_progress=False,
  )
  lines = [line for _ in range(20) for line in sample(rng).split("\n")]
  made.train_from_iterator(lines, trainer)
  content = json.loads(made.to_str())
  content["pre_tokenizer"] = content["pre_tokenizer"] if cut else None
  return HuggingFaceTokenizer(json.dumps(content).encode())


@pytest.fixture(
  scope="module", params=[lambda folder: ByteTokenizer(), sentencepiece, byte_pairs, prefixed]
)
def tokenizer(request, tmp_path_factory):
  return request.param(tmp_path_factory.mktemp("tokenizer"))


class Trickle(io.RawIOBase):
  """A stream that gives a few bytes at a time, like a pipe."""

  def __init__(self, data, rng):
    self._data, self._rng = data, rng

  def readable(self):
    return True

  def readinto(self, buffer):
    size = min(len(self._data), len(buffer), int(self._rng.integers(1, 8)))
    buffer[:size], self._data = self._data[:size], self._data[size:]
    return size


def test_a_text_a_file_and_a_stream_give_the_tokens_of_the_whole(rng, tokenizer, tmp_path):
  text = sample(rng)
  expected = tokenizer.encode(text).tolist()
  (tmp_path / "a.txt").write_text("\ufeff" + text.replace("\n", "\r\n"), "utf-8", newline="")
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
  stream = io.BufferedReader(Trickle(text.encode(), rng), buffer_size=16)
  windows = text.replace("\n", "\r\n")
  for source in (
    text,
    windows,
    tmp_path / "a.txt",
    tmp_path / "a.txt.gz",
    stream,
    io.StringIO(text),
    "\ufeff" + text,
    io.StringIO("\ufeff" + text),
  ):
    got = list(tokens_of(source, tokenizer))
    assert got == expected, f"{source!r}: {tokenizer.decode(got)!r}"


def test_long_lines_are_cut_in_front_of_words(rng, tokenizer, monkeypatch):
  monkeypatch.setattr(texts, "LONG", 40)
  text = " ".join(rng.choice(["the", "cat", "sat", "été"], 100))
  stream = io.BufferedReader(Trickle(text.encode(), rng), buffer_size=16)
  expected = tokenizer.encode(text).tolist()
  assert list(tokens_of(text, tokenizer)) == list(tokens_of(stream, tokenizer)) == expected
  assert max(map(len, texts.pieces_of(io.StringIO(text)))) <= 40
  endless = "x" * 100
  assert list(texts.pieces_of([endless[i : i + 33] for i in range(0, 100, 33)])) == [
    endless[a:b] for a, b in pairwise([0, 40, 80, 100])
  ]


def test_lines_are_tokenized_as_they_arrive():
  """Lines are tokenized when they arrive, except the last, which waits for the next line."""
  arrived = []

  def lines():
    for line in ("one\n", "two\n", "three\n"):
      arrived.append(line)
      yield line

  pieces = texts.pieces_of(lines())
  assert (next(pieces), arrived) == ("one\n", ["one\n", "two\n"])


@pytest.mark.parametrize(
  "data,message",
  [
    (b"abc\xff\xfe" * 9, r"not UTF-8 text .after 3 char"),
    (b"a\0b", "NUL"),
    (b"\x1f\x8b12", "cannot be read"),
  ],
  ids=["latin", "nul", "gzip"],
)
def test_data_that_is_not_text_is_refused_in_one_line(tmp_path, data, message):
  file = tmp_path / ("a.gz" if message == "cannot be read" else "a")
  file.write_bytes(data)
  with pytest.raises(InputError, match=message) as error:
    list(tokens_of(file, ByteTokenizer()))
  assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_the_name_of_a_file_is_not_read_as_a_text(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "book.txt").write_text("A book.")
  read = lambda source: bytes(tokens_of(source, ByteTokenizer())).decode()
  for name in ("book.txt", "./book.txt", "~/book.txt", " book.txt\n", str(tmp_path / "book.txt")):
    with pytest.raises(InputError, match="a file of this name exists") as error:
      read(name)
    assert "\n" not in str(error.value) and repr(name) in str(error.value)
  assert read(Path("book.txt")) == read(PurePath("book.txt")) == "A book."
  assert read(io.StringIO("book.txt")) == "book.txt", "the name itself"
  for text in ("book", "~nobody/book.txt", "book.txt is good", "book.txt" * 999, str(tmp_path)):
    assert read(text) == text
  for wrong in ("a\0b", "a\ud800"):
    with pytest.raises(InputError, match="the text: "):
      read(wrong)
  with open("book.txt") as file:
    pass
  with pytest.raises(InputError, match="is closed; open it again"):
    read(file)


def test_a_file_that_the_tokenizer_fails_on_is_named(tmp_path):
  model = {"type": "WordLevel", "vocab": {"<s>": 0, "cat": 1}, "unk_token": "[UNK]"}
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  added = [flags | {"id": 0, "content": "<s>", "special": True}]
  content = {"version": "1.0", "added_tokens": added, "model": model}
  tokenizer = HuggingFaceTokenizer(json.dumps(content).encode())
  (tmp_path / "dog.txt").write_text("dog")
  with pytest.raises(InputError, match=r"dog.txt: the tokenizer fails on a text of 3 characters"):
    list(tokens_of(tmp_path / "dog.txt", tokenizer))
  with pytest.raises(InputError, match=r"^the tokenizer fails on a text of 3 characters"):
    list(tokens_of("dog", tokenizer))
