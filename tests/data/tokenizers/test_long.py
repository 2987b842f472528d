"""A very long document has the tokens of the whole, encoded in pieces."""

import numpy as np
import pytest

from infini_jax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, long
from tests.convert import golden

WORDS = ("the", "other", "thé", "a1234", "\t", "x.y", "  two", "12", "ü")
ENDS = (" ", "\n", "\n\n", " \n", "\n    ", "  ")


@pytest.fixture
def short_pieces(monkeypatch):
  monkeypatch.setattr(long, "LONGEST", 300)
  monkeypatch.setattr(long, "PIECE", 100)


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  golden.write_tokenizer(folder)
  return HuggingFaceTokenizer((folder / "tokenizer.json").read_bytes())


def a_text(rng, words):
  return "".join(rng.choice(WORDS) + rng.choice(ENDS) for _ in range(words))


@pytest.mark.parametrize("kind", ["bytes", "huggingface"])
def test_the_tokens_are_those_of_the_whole(rng, kind, huggingface, short_pieces):
  tokenizer = ByteTokenizer() if kind == "bytes" else huggingface
  text = a_text(rng, 400)
  assert len(list(long.pieces(text))) > 3
  np.testing.assert_array_equal(
    long.encode_document(tokenizer, text, "a text"), tokenizer.encode(text)
  )


@pytest.mark.parametrize("end", ["\n", "\n\n", " ", ""])
def test_every_text_is_cut(rng, short_pieces, end):
  text = "".join(f"w{i}{end}" for i in rng.integers(100, size=500))
  found = list(long.pieces(text))
  assert "".join(found) == text and max(map(len, found)) <= 2 * long.PIECE
  assert all(len(piece) >= long.PIECE for piece in found[:-1])


def test_words_are_counted(rng, short_pieces):
  for words in (10, 400):
    text = a_text(rng, words)
    assert long.count_words(text) == len(text.split())
