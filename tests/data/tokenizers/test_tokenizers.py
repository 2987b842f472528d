import json
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data.tokenizers import (
  ByteTokenizer,
  HuggingFaceTokenizer,
  SentencePieceTokenizer,
  WordTokenizer,
  load_saved,
  load_tokenizer,
  sentencepiece_model,
  train_sentencepiece,
)

CODE = Path(json.__file__).read_text() + Path(json.decoder.__file__).read_text()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
  file = tmp_path_factory.mktemp("model") / "code.model"
  train_sentencepiece([CODE], 512, file)
  return file


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
  """A byte-level BPE in Hugging Face's format."""
  tokenizer = huggingface.Tokenizer(huggingface.models.BPE())
  tokenizer.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = huggingface.decoders.ByteLevel()
  trainer = huggingface.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=huggingface.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([CODE], trainer)
  tokenizer.enable_truncation(8)
  file = tmp_path_factory.mktemp("json") / "tokenizer.json"
  tokenizer.save(str(file))
  return file


@pytest.fixture(scope="module")
def every(model_file, json_file):
  return [
    load_tokenizer(spec)
    for spec in ("bytes", f"sentencepiece:{model_file}", f"huggingface:{json_file}")
  ]


TEXTS = st.one_of(
  st.text(max_size=60),
  st.text("ab \n\t\r\u2581<s>/0x", max_size=60),
  st.lists(st.sampled_from(["    ", "def f", "\n", "\t", "<s>", "<|endoftext|>", "é", "\0"])).map(
    "".join
  ),
)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_round_trip_is_exact(every, text):
  for tokenizer in every:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert not set(ids.tolist()) & {tokenizer.bos, tokenizer.eos}, "text must not make specials"
    assert tokenizer.decode(ids) == text, type(tokenizer).__name__


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-5, 600), max_size=20))
def test_decode_takes_any_ids(every, ids):
  for tokenizer in every:
    assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("hé"), tokenizer.eos, -1]) == "hé"
    assert tokenizer.decode([tokenizer.bos, tokenizer.eos, tokenizer.size]) == ""


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<s>", "</s>", *BYTES, "a", "b", " ", "\ufffd", "ab"]


@pytest.fixture(scope="module")
def fallback():
  """A vocabulary of a few letters, with byte tokens for other characters, as in Llama 2."""
  model = huggingface.models.BPE(
    {piece: id for id, piece in enumerate(PIECES)}, [("a", "b")], byte_fallback=True, unk_token=None
  )
  tokenizer = huggingface.Tokenizer(model)
  tokenizer.add_special_tokens(["<s>", "</s>"])
  tokenizer.decoder = huggingface.decoders.Sequence(
    [huggingface.decoders.ByteFallback(), huggingface.decoders.Fuse()]
  )
  return HuggingFaceTokenizer(tokenizer.to_str().encode())


def test_a_token_inside_of_a_text_has_its_space():
  """Decoders of a whole text take the first space away."""
  kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "\u2581": 1, "\u2581a": 1, "a": 1}
  pieces = [(piece, float(-i), kind) for i, (piece, kind) in enumerate(kinds.items())]
  tokenizer = SentencePieceTokenizer(sentencepiece_model(pieces, "<s>", "</s>", add_space=True))
  assert tokenizer.decode([4]) == "a" and tokenizer.bytes_of(4) == b" a"
  vocabulary = {"<s>": 0, "\u2581": 1, "a": 2, "\u2581a": 3}
  plain = huggingface.Tokenizer(huggingface.models.BPE(vocabulary, [("\u2581", "a")]))
  plain.add_special_tokens(["<s>"])
  plain.pre_tokenizer = huggingface.pre_tokenizers.Metaspace(prepend_scheme="first")
  plain.decoder = huggingface.decoders.Metaspace(prepend_scheme="first")
  tokenizer = HuggingFaceTokenizer(plain.to_str().encode())
  assert tokenizer.decode([3]) == "a" and tokenizer.bytes_of(3) == b" a"
  assert tokenizer.bytes_of(0) == b"" == tokenizer.bytes_of(99)


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(TEXTS, st.text("ab é日🙂\ufffd", max_size=30)))
def test_bytes_are_those_of_the_text_wherever_it_is_cut(every, fallback, text):
  data = text.encode()
  for tokenizer in (*every, fallback):
    ids = tokenizer.encode(text)
    counts = [tokenizer.count_bytes(ids[:n]) for n in range(len(ids) + 1)]
    assert b"".join(map(tokenizer.bytes_of, ids.tolist())) == data
    assert counts == sorted(set(counts)) and counts[0] == 0 and counts[-1] == len(data)
    if tokenizer is fallback:  # its decoder drops all bytes of a character that is cut
      lengths = [{"ab": 2, "�": 3}.get(PIECES[id], 1) for id in ids]
      assert counts == np.cumsum([0, *lengths]).tolist()
      continue
    for n, count in enumerate(counts):
      cut = data[:count].decode("utf-8", "replace")
      assert tokenizer.decode(ids[:n]).rstrip("�") == cut.rstrip("�")


def test_specials_are_ids_of_the_vocabulary(every):
  for tokenizer in every:
    assert 0 <= tokenizer.bos < tokenizer.size and 0 <= tokenizer.eos < tokenizer.size
  assert (every[0].size, every[0].bos, every[0].eos) == (257, 256, 256)
  assert every[1].bos != every[1].eos
  assert every[2].bos == every[2].eos


def test_long_text_is_not_cut(every):
  for tokenizer in every:
    assert tokenizer.decode(tokenizer.encode(CODE)) == CODE


def test_saved_is_the_same_tokenizer(every, tmp_path):
  for i, tokenizer in enumerate(every):
    folder = tmp_path / str(i)
    folder.mkdir()
    tokenizer.save(folder)
    again = load_saved(folder)
    assert type(again) is type(tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert np.array_equal(again.encode(CODE), tokenizer.encode(CODE))
  assert len({tokenizer.fingerprint for tokenizer in every}) == 3
  with pytest.raises(InputError, match="holds no saved tokenizer"):
    load_saved(tmp_path)


def test_indentation_is_one_piece(model_file):
  tokenizer = SentencePieceTokenizer(model_file.read_bytes())
  assert len(tokenizer.encode(" " * 8)) == 1
  assert len(tokenizer.encode("\n")) == len(tokenizer.encode("\t")) == 1
  assert len(CODE.encode()) / len(tokenizer.encode(CODE)) > 1.5


def test_training_is_the_same_every_time_and_quiet(model_file, tmp_path, capfd):
  train_sentencepiece([CODE], 512, tmp_path / "again.model")
  assert (tmp_path / "again.model").read_bytes() == model_file.read_bytes()
  assert capfd.readouterr().err == ""


def test_one_endless_line_can_be_trained_on(tmp_path):
  train_sentencepiece([CODE.replace("\n", " ")], 400, tmp_path / "line.model")
  assert SentencePieceTokenizer((tmp_path / "line.model").read_bytes()).size == 400


@pytest.mark.parametrize(("bos", "eos"), [(-1, 2), (1, -1)])
def test_sentencepiece_without_bos_or_eos_uses_the_other(tmp_path, bos, eos):
  tokenizer = SentencePieceTokenizer(_sentencepiece(bos, eos))
  assert tokenizer.bos == tokenizer.eos == max(bos, eos)


def _sentencepiece(bos, eos):
  import io

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CODE.split("\n")),
    model_writer=model,
    vocab_size=300,
    bos_id=bos,
    eos_id=eos,
    minloglevel=2,
  )
  return model.getvalue()


def test_wrong_tokenizers_are_refused(tmp_path, json_file):
  (tmp_path / "text").write_text("no model")
  no_specials = json_file.read_text().replace("<|endoftext|>", "<|other|>")
  for make, match in (
    (lambda: load_tokenizer("word"), "'word': choose bytes, train:SIZE"),
    (lambda: load_tokenizer("huggingface:"), "choose bytes"),
    (lambda: load_tokenizer("train:512"), "trained by `prepare`"),
    (lambda: load_tokenizer(f"sentencepiece:{tmp_path}/none"), "No such file"),
    (lambda: load_tokenizer(f"sentencepiece:{tmp_path}/text"), "not a SentencePiece model"),
    (lambda: load_tokenizer(f"huggingface:{tmp_path}/text"), "not a Hugging Face tokenizer"),
    (
      lambda: HuggingFaceTokenizer(no_specials.encode()),
      "none of its special .*<.other.> 0.; name",
    ),
    (lambda: SentencePieceTokenizer(_sentencepiece(-1, -1)), "neither bos nor eos"),
    (lambda: train_sentencepiece([CODE], 99_999, tmp_path / "m"), "train:99999.*too high"),
    (lambda: train_sentencepiece([CODE], 10, tmp_path / "m"), "train:10:.*choose another"),
    (lambda: train_sentencepiece(["\n"], 300, tmp_path / "m"), "train:300.*no training text"),
  ):
    with pytest.raises(InputError, match=match) as error:
      make()
    assert "\n" not in str(error.value)


def test_bytes_of_a_lone_surrogate_do_not_fail():
  assert ByteTokenizer().decode(ByteTokenizer().encode("a\ud800b")) == "a?b"


def test_no_model_code_is_needed():
  assert "tensorflow" not in sys.modules


def test_words_are_pieces_the_longest_first_and_nothing_else(tmp_path):
  tokenizer = WordTokenizer(["a", "ab", " ab", "."])
  assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (6, 0, 0)
  ids = tokenizer.encode("ab aba.")
  assert ids.dtype == np.int32 and ids.tolist() == [3, 4, 2, 5]
  assert tokenizer.decode([0, *ids, 99, -1]) == "ab aba."
  assert tokenizer.encode("a\n.x").tolist() == [2, 1, 5, 1], "what is no piece is the unknown id"
  assert tokenizer.encode("").tolist() == [] and tokenizer.decode([1, 2]) == "a"
  tokenizer.save(tmp_path)
  again = load_saved(tmp_path)
  assert isinstance(again, WordTokenizer) and again.fingerprint == tokenizer.fingerprint
  assert again.encode("ab aba.").tolist() == ids.tolist()
  assert WordTokenizer(["a", "ab", "."]).fingerprint != tokenizer.fingerprint
