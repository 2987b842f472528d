"""Tokens become text by whole characters, and end where a stop string begins."""

import numpy as np
import pytest

from infini_jax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, train_sentencepiece
from infini_jax.inference.writing import Writer

LETTERS = list("abcab cab\n éß→日本𝄞")


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
  if request.param == "bytes":
    return ByteTokenizer()
  file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
  rng = np.random.default_rng(0)
  train_sentencepiece(("".join(rng.choice(list("abc d\n"), 400)) for _ in range(9)), 300, file)
  return SentencePieceTokenizer(file.read_bytes())


def pieces(tokenizer, ids, stop=(), before=()):
  writer, told = Writer(tokenizer, before, stop), []
  for i, token in enumerate(ids):
    told.append(writer.push(int(token), last=i == len(ids) - 1))
    if told[-1][1]:
      break
  return [text for text, _ in told], told[-1][1]


def test_the_pieces_are_the_text_in_whole_characters(rng, tokenizer):
  for _ in range(20):
    text = "".join(rng.choice(LETTERS, 60))
    before = tokenizer.encode("".join(rng.choice(LETTERS, 9))).tolist()
    got, end = pieces(tokenizer, tokenizer.encode(text), before=before)
    assert "".join(got) == text and end == "length"
    assert not any("\ufffd" in piece for piece in got), "half a character was shown"


def test_a_stop_string_ends_it_wherever_tokens_are_cut(rng, tokenizer):
  for _ in range(40):
    text = "".join(rng.choice(LETTERS, 60))
    at, size = int(rng.integers(0, 50)), int(rng.integers(1, 9))
    stops = [text[at : at + size], "never in it"]
    got, end = pieces(tokenizer, tokenizer.encode(text), stops)
    assert "".join(got) == text.partition(stops[0])[0], f"stopped by {stops[0]!r}"
    assert end == "stop"


def test_text_that_only_begins_like_a_stop_string_is_shown(rng, tokenizer):
  text = "ab abc abcab"
  got, end = pieces(tokenizer, tokenizer.encode(text), ["abcd", "abcaba"])
  assert "".join(got) == text and end == "length"


def test_the_documents_mark_ends_it(tokenizer):
  ids = [*tokenizer.encode("ab"), tokenizer.eos, *tokenizer.encode("c")]
  assert ("".join(pieces(tokenizer, ids, ["bx"])[0]), pieces(tokenizer, ids)[1]) == (
    "ab",
    "document",
  )


def test_bytes_that_are_not_text_do_not_delay_the_output(rng):
  ids = np.concatenate([rng.integers(128, 192, 500), ByteTokenizer().encode("and on")])
  got, _ = pieces(ByteTokenizer(), ids)
  assert "".join(got).endswith("and on") and "".join(got).count("\ufffd") > 400
  assert max(map(len, got)) < 16
