"""The form of answers: what is told of each token."""

import json

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from infini_jax.data.tokenizers import ByteTokenizer  # noqa: E402
from infini_jax.inference import Piece  # noqa: E402
from infini_jax.inference.batch import Drawn  # noqa: E402
from infini_jax.serve.answers import Completion  # noqa: E402
from infini_jax.serve.fields import asking  # noqa: E402
from infini_jax.serve.job import Done, Written  # noqa: E402
from infini_jax.serve.limits import Limits  # noqa: E402

EURO = "€".encode()


def answer(kind, **body):
  """An answer of the three bytes of a character and of the mark that ends a document."""
  asked = asking(kind, body, "tiny", Limits())
  made = Completion(asked, 0, "tiny", "made", ByteTokenizer())
  for byte, text in zip(EURO, ("", "", "€"), strict=True):
    likeliest = [(byte, -1.0), (0xFF, -2.0), (0xFE, -3.0)]
    made.take(Written(Piece(0, byte, text), Drawn(byte, -1.0, likeliest)))
  made.take(Written(Piece(0, 256, "", "document"), Drawn(256, -1.0, [(256, -1.0), (65, -2.0)])))
  made.take(Done(9))
  return json.loads(json.dumps(made.whole()))["choices"][0]


def test_the_bytes_of_parts_of_a_character_make_the_character():
  choice = answer("chat", messages=[], logprobs=True, top_logprobs=3)
  tokens = choice["logprobs"]["content"]
  assert b"".join(bytes(each["bytes"] or ()) for each in tokens).decode() == "€"
  assert choice["message"]["content"] == "€"
  assert [each["token"] for each in tokens] == ["\\xe2", "\\x82", "\\xac", "<|document|>"]
  assert tokens[-1]["bytes"] is None  # a special token adds nothing to the text
  assert [each["bytes"] for each in tokens[0]["top_logprobs"]] == [[0xE2], [0xFF], [0xFE]]


def test_parts_of_characters_have_names_of_their_own():
  told = answer("completion", logprobs=3)["logprobs"]
  assert told["tokens"][:3] == ["\\xe2", "\\x82", "\\xac"]
  assert told["top_logprobs"][0] == {"\\xe2": -1.0, "\\xff": -2.0, "\\xfe": -3.0}
  assert told["top_logprobs"][-1] == {"<|document|>": -1.0, "A": -2.0}
  assert told["text_offset"] == [0, 0, 0, 1]
