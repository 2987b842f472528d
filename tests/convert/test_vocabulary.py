"""The tokenizer of a folder with a `tokenizer.model`, and declarations in the files beside it."""

import json

import pytest

from infini_jax.config import InputError
from infini_jax.convert.vocabulary import find_tokenizer
from infini_jax.data import load_saved, load_tokenizer, train_sentencepiece

TEXT = "the cat sat on the mat, and a dog sat by it. <|im_end|> " * 20
RAW = {"vocab_size": 310}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
  train_sentencepiece([TEXT], 300, file)
  return file.read_bytes()


@pytest.fixture
def find(tmp_path, model):
  (tmp_path / "tokenizer.model").write_bytes(model)

  def find(raw=None, **files):
    for name, said in files.items():
      (tmp_path / f"{name}.json").write_text(json.dumps(said))
    return find_tokenizer(tmp_path, RAW | (raw or {}))

  return find


CHAT = {"<|im_start|>": 300, "<|im_end|>": 301}


def test_declared_tokens_and_marks_are_written_into_the_model(find, model, tmp_path):
  plain = find()
  assert (plain.bos, plain.eos, plain.size) == (1, 2, 300)
  assert find({"eos_token_id": 2}).fingerprint == plain.fingerprint, "nothing is new"
  made = find({"eos_token_id": 301}, added_tokens=CHAT)
  assert (made.bos, made.eos, made.size) == (1, 301, 302)
  assert made.encode(TEXT).tolist() == plain.encode(TEXT).tolist(), "a text names no mark"
  assert made.decode([300, *made.encode("the cat"), 301, 2]) == "the cat"
  made.save(tmp_path / "saved")
  again = load_saved(tmp_path / "saved")
  assert (again.bos, again.eos, again.fingerprint) == (1, 301, made.fingerprint)
  decoder = {"301": {"content": "<|im_end|>", "special": True}, "303": {"content": "[x y]"}}
  named = find(tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": decoder})
  assert (named.eos, named.size) == (301, 304)
  assert named.encode("a[x y]b").tolist()[1:2] == [303], "a token that is not special is text"
  assert named.decode(named.encode("a[x y]b")) == "a[x y]b" and named.decode([302]) == ""
  beside = load_tokenizer(f"sentencepiece:{tmp_path}/tokenizer.model")
  assert beside.fingerprint == named.fingerprint, "prepare reads what convert reads"


def test_text_never_gives_a_piece_that_is_declared_a_mark(find):
  plain = find()
  piece = int(plain.encode("cat")[-1])
  made = find({"eos_token_id": piece})
  assert made.eos == piece and piece not in made.encode("cat cat").tolist()
  assert made.decode(made.encode("cat cat")) == "cat cat"
  only = find({"bos_token_id": None, "eos_token_id": None}, special_tokens_map={"eos_token": "<s>"})
  assert (only.bos, only.eos) == (1, 1)


@pytest.mark.parametrize(
  ("raw", "files", "said"),
  [
    ({"eos_token_id": 99_999}, {}, "eos_token_id=99999 is not an id of its 310; correct it"),
    ({"eos_token_id": 305}, {}, "eos_token_id=305 is not a token of tokenizer.model; correct it"),
    ({"eos_token_id": 0}, {}, "eos, '<unk>', also means text there; declare another"),
    ({"bos_token_id": 5}, {}, "bos, '<0x00>', also means text there"),
    ({}, {"tokenizer_config": {"eos_token": "<x>"}}, "eos_token '<x>' is not a token of tokenizer"),
    ({}, {"added_tokens": {"<x>": 1}}, "'<x>' has the id 1, but id 1 is '<s>' in tokenizer.model"),
    ({}, {"added_tokens": {"</s>": 300}}, "'</s>' has the id 300, but it is 2 in tokenizer.model"),
    ({}, {"added_tokens": {"<x>": -1}}, "added_tokens.json: -1 is not an id of a token '<x>'"),
    (
      {},
      {
        "added_tokens": {"<x>": 301},
        "tokenizer_config": {"added_tokens_decoder": {"300": {"content": "<x>"}}},
      },
      "added_tokens.json: token '<x>' is 301 here and 300 in another entry",
    ),
    (
      {},
      {
        "added_tokens": {"<x>": 300},
        "tokenizer_config": {"added_tokens_decoder": {"300": {"content": "<y>"}}},
      },
      "added_tokens.json: id 300 is '<x>' here and '<y>' in another entry",
    ),
    (
      {"vocab_size": 1 << 24},
      {"added_tokens": {"<x>": 10_000_000}},
      "10000000, far behind the 300",
    ),
    (
      {},
      {"added_tokens": {"<x>": 310}, "tokenizer_config": {"eos_token": "<x>"}},
      "is not a token of",
    ),
  ],
)
def test_wrong_declarations_in_the_other_files_are_refused(find, raw, files, said):
  with pytest.raises(InputError, match=said) as error:
    find(raw, **files)
  assert "\n" not in str(error.value)


def test_added_tokens_behind_the_embedding_are_left_out(find):
  made = find(added_tokens={"<image>": 310})
  assert made.size == 300 and made.fingerprint == find().fingerprint


def test_a_folders_tokenizer_json_with_dropout_gives_the_same_ids_each_time(tmp_path):
  vocab = {token: id for id, token in enumerate(["<s>", "a", "b", "ab", "abab"])}
  merges = [["a", "b"], ["ab", "ab"]]
  model = {"type": "BPE", "dropout": 0.9, "vocab": vocab, "merges": merges}
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  added = [flags | {"id": 0, "content": "<s>", "special": True}]
  content = {"version": "1.0", "added_tokens": added, "model": model}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  tokenizer = find_tokenizer(tmp_path, RAW)
  tokenizer.save(tmp_path / "saved")
  for made in (tokenizer, load_saved(tmp_path / "saved")):
    assert {tuple(made.encode("ababab")) for _ in range(30)} == {(4, 3)}
