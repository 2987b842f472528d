"""Vocabularies of GGUF files, compared with the tokenizers that they were made from."""

import io
import json
import shutil
import sys

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from infini_jax.config import InputError
from infini_jax.convert.byte_level import CUTS, tokenizer_json
from infini_jax.convert.gguf import convert
from infini_jax.data import SentencePieceTokenizer, load_saved, sentencepiece_model
from tests.convert.gguf_files import CONTROL, NORMAL, byte_level, write
from tests.convert.reading import console

UNKNOWN, USER, UNUSED, BYTE = 2, 4, 5, 6
NAMES = ["<s>", "</s>", "<unk>", "[INST]", "<turn>", "<my turn>", "<0x41>", "[PAD420]"]
ALPHABETS = [
  "ab the\n",
  "  \t\r\n'.x",
  "de\u2581f é漢🦙\u0301\u200b\0",
  [*NAMES, " ", "def", "\u2581"],
]


@pytest.fixture(scope="module", params=[True, False], ids=["space in front", "no space"])
def original(request):
  """A small model like Llama 2's: byte pairs, all bytes, no normalization."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(open(json.decoder.__file__)),
    model_writer=model,
    vocab_size=420,
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    add_dummy_prefix=request.param,
    control_symbols=["[INST]"],
    user_defined_symbols=["<turn>", "<my\u2581turn>"],
    minloglevel=2,
  )
  content = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
  normal = [piece for piece in content.pieces if piece.type == NORMAL]
  for piece, score in zip(normal, [piece.score for piece in reversed(normal)], strict=True):
    piece.score = score  # scores need not be in the order of the ids
  made = sentencepiece.SentencePieceProcessor(model_proto=content.SerializeToString())
  return made, request.param


def pieces_fields(made, add_space, *, marks_declared):
  """The fields of a file. Marks that the folder declared as added have no types and scores in it.

  A last token fills the embedding: unused, or of an unknown type.
  """
  every = range(made.get_piece_size())
  kinds = [NORMAL] * len(every)
  for kind, holds in ((UNKNOWN, made.is_unknown), (CONTROL, made.is_control), (BYTE, made.is_byte)):
    kinds = [kind if holds(i) else kinds[i] for i in every]
  tokens, scores = [made.id_to_piece(i) for i in every], [made.get_score(i) for i in every]
  for name in ("<turn>", "<my\u2581turn>"):
    i = made.piece_to_id(name)
    kinds[i], tokens[i] = USER, name.replace("\u2581", " ")
  if marks_declared:
    kinds[:3], scores[:3] = [CONTROL] * 3, [-1000.0] * 3
  tokens, scores = [*tokens, "[PAD420]"], [*scores, -10_000.0]
  kinds.append(UNKNOWN if marks_declared else UNUSED)
  said = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores}
  said |= {"token_type": kinds, "bos_token_id": 1, "eos_token_id": 2}
  said |= {"unknown_token_id": 0, "add_bos_token": True}
  return said if add_space else said | {"add_space_prefix": False}


@pytest.mark.parametrize("marks_declared", [False, True], ids=["typed", "declared"])
def test_a_sentencepiece_vocabulary_is_converted(rng, tmp_path, original, marks_declared):
  made, add_space = original
  fields = pieces_fields(made, add_space, marks_declared=marks_declared)
  write(tmp_path / "a.gguf", rng, vocabulary=fields)
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  tokenizer = load_saved(tmp_path / "run" / "tokenizer")
  assert isinstance(tokenizer, SentencePieceTokenizer)
  assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (made.get_piece_size() + 1, 1, 2)
  saved = str(tmp_path / "run" / "tokenizer" / "tokenizer.model")
  assert sentencepiece.SentencePieceProcessor(model_file=saved).is_unknown(0)
  texts = ["", " ", "   two", "a\n\n b\t", "<s>x</s>", "[INST] <turn> a<turn>", "\u2581 a\u2581b"]
  for _ in range(200):
    alphabet = ALPHABETS[rng.integers(len(ALPHABETS))]
    texts.append("".join(alphabet[i] for i in rng.integers(len(alphabet), size=rng.integers(20))))
  for text in texts:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text, f"{text!r} must come back"
    if "\u2581" not in text:  # the original reads this character as a space
      assert ids.tolist() == made.encode(text), f"{text!r}: another split than the original's"
      assert tokenizer.decode(ids) == made.decode(ids.tolist())
  assert not set(tokenizer.encode("".join(NAMES))) & {0, 1, 2, made.piece_to_id("[INST]")}
  for name in ("<turn>", "<my turn>"):
    assert fields["tokens"].index(name) in tokenizer.encode(f"a{name}b"), f"{name} is one token"


def refused(tmp_path, rng, fields):
  write(tmp_path / "a.gguf", rng, vocabulary=fields)
  with pytest.raises(InputError) as error:
    convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"] and "\n" not in str(error.value)
  return str(error.value)


def test_a_token_that_was_added_may_end_a_document(rng, tmp_path, original):
  """As in chat models, whose turns end with such a token. In a text, its name is text."""
  fields = pieces_fields(*original, marks_declared=False)
  turn = fields["tokens"].index("<turn>")
  write(tmp_path / "a.gguf", rng, vocabulary=fields | {"eos_token_id": turn})
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  tokenizer = load_saved(tmp_path / "run" / "tokenizer")
  assert (tokenizer.bos, tokenizer.eos) == (1, turn)
  assert turn not in tokenizer.encode("a<turn>b")


def test_undeclared_marks_are_not_ordinary_pieces(rng, tmp_path, original):
  fields = pieces_fields(*original, marks_declared=True)
  tokens = [*fields["tokens"]]
  del fields["bos_token_id"], fields["eos_token_id"]
  write(tmp_path / "a.gguf", rng, vocabulary=fields)
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  tokenizer = load_saved(tmp_path / "run" / "tokenizer")
  assert (tokenizer.bos, tokenizer.eos) == (1, 2)
  shutil.rmtree(tmp_path / "run")
  tokens[1:3] = "<begin>", "<end>"
  said = refused(tmp_path, rng, fields | {"tokens": tokens})
  assert "none of its special tokens has a usual name (<unk> 0, <begin> 1, <end> 2" in said
  assert said.endswith("convert the Hugging Face folder of this model")


def test_incomplete_vocabularies_are_refused(rng, tmp_path, original):
  fields = pieces_fields(*original, marks_declared=False)
  tokens = fields["tokens"]
  alike = [-1000.0] * len(tokens)
  said = refused(tmp_path, rng, fields | {"scores": alike})
  assert "its tokens have no scores, so their order of merging is lost; convert the Hugging" in said
  for spoilt in (tokens[-2], ""):
    said = refused(tmp_path, rng, fields | {"tokens": [*tokens[:-1], spoilt]})
    assert "make no SentencePiece vocabulary (one is empty or there twice" in said
  said = refused(tmp_path, rng, fields | {"scores": fields["scores"][:-1]})
  assert f"{len(tokens)} tokens do not go with their types, scores" in said


def test_a_missing_protobuf_is_named(monkeypatch):
  monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2")
  monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
  with pytest.raises(InputError, match="cannot be written .*pip install --upgrade protobuf"):
    sentencepiece_model([("<s>", 0.0, CONTROL)], "<s>", "<s>", True)


# The words that a text is split into, by the package regex.
TEXT = "I'LL say camelCASE, 12345 of/\n\n  x.\n/y\tl'été it's"
WORDS = {
  "gpt-2": "I|'|LL| say| camelCASE|,| 12345| of|/|\n\n | x|.|\n|/|y|\t|l|'|été| it|'s",
  "smollm": "I|'|LL| say| camelCASE|,| |1|2|3|4|5| of|/|\n\n | x|.|\n|/|y|\t|l|'|été| it|'s",
  "llama-bpe": "I|'LL| say| camelCASE|,| |123|45| of|/\n\n| | x|.\n|/y|\tl|'été| it|'s",
  "tekken": "I|'LL| say| camel|CASE|,| |1|2|3|4|5| of|/\n\n| | x|.\n/|y|\tl|'été| it|'s",
}


@pytest.mark.parametrize("cut", CUTS)
def test_text_is_split_by_the_pre_tokenizer_of_the_file(tmp_path, cut):
  tokens, merges, _ = byte_level()
  tokens.append("xy")  # no merge makes this token
  content = tokenizer_json(tokens, merges, [NORMAL] * len(tokens), cut, tmp_path)
  made = tokenizers.Tokenizer.from_str(content.decode())
  found = [TEXT[start:end] for _, (start, end) in made.pre_tokenizer.pre_tokenize_str(TEXT)]
  assert "|".join(found) == WORDS[cut], f"{cut} cuts a text otherwise"
  is_whole = made.encode("xy").ids == [len(tokens) - 1]
  assert is_whole == (cut in ("llama-bpe", "tekken")), f"{cut}: merges before, or after, words"
