"""A chat template is found beside a vocabulary, and saved and loaded with it."""

import json

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import Template, find_template, load_saved, sentencepiece_model
from infini_jax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, WordTokenizer
from tests.data.chat.vocabulary import CHATML, vocabulary

CONFIG = {
  "bos_token": {"content": "<s>", "special": True},
  "eos_token": "</s>",
  "pad_token": None,
  "model_max_length": 8,
}


def folder(path, **fields):
  (path / "tokenizer_config.json").write_text(json.dumps(CONFIG | fields))
  return path


def test_one_template_several_and_a_file_beside_them(tmp_path):
  assert find_template(folder(tmp_path)) is None
  found = find_template(folder(tmp_path, chat_template="a"))
  assert found == Template({"default": "a"}, {"bos_token": "<s>", "eos_token": "</s>"})
  several = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
  assert find_template(folder(tmp_path, chat_template=several)).texts == {
    "default": "a",
    "rag": "b",
  }
  (tmp_path / "chat_template.jinja").write_text("c")
  assert find_template(tmp_path).texts == {"default": "c", "rag": "b"}


@pytest.mark.parametrize("wrong", [3, ["a"], [{"name": "a"}], {"a": 1}])
def test_a_template_that_is_no_text_is_refused(tmp_path, wrong):
  with pytest.raises(InputError, match="neither a text nor a list of named texts"):
    find_template(folder(tmp_path, chat_template=wrong))


def test_it_is_saved_with_every_kind_of_tokenizer(tmp_path):
  pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("a", -1.0, 1)]
  model = SentencePieceTokenizer(sentencepiece_model(pieces, "<s>", "</s>", add_space=False))
  assert model.encode_marked("a<s>a</s>").tolist() == [3, 1, 3, 2]
  for i, made in enumerate((vocabulary(), model, ByteTokenizer(), WordTokenizer([" a"]))):
    made.template = Template({"default": CHATML}, {"eos_token": "x"}, "own", "2026-01-01")
    made.save(tmp_path / str(i))
    assert load_saved(tmp_path / str(i)).template == made.template
  ByteTokenizer().save(tmp_path / "none")
  assert load_saved(tmp_path / "none").template is None


def test_a_damaged_file_is_refused(tmp_path):
  ByteTokenizer().save(tmp_path)
  (tmp_path / "chat.json").write_text('{"texts": {"default": 1}}')
  with pytest.raises(InputError, match="chat.json: damaged"):
    load_saved(tmp_path)


def test_names_of_special_tokens_become_tokens_only_where_that_is_asked(rng):
  text = "a<|im_end|>b\n\n<|im_start|>"
  tokenizer = vocabulary()
  assert tokenizer.encode_marked(text).tolist() == [97, 259, 98, 256, 258]
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert not set(tokenizer.encode(text)) & {257, 258, 259}
  assert tokenizer.special == {"<|endoftext|>": 257, "<|im_start|>": 258, "<|im_end|>": 259}
  assert ByteTokenizer().encode_marked("a<|document|>b").tolist() == [97, 256, 98]
  assert WordTokenizer([" a"]).encode_marked(" a<s> a").tolist() == [2, 0, 2]
  plain = "".join(rng.choice(list("ab \né<|>"), 40))
  for one in (tokenizer, ByteTokenizer()):
    assert np.array_equal(one.encode_marked(plain), one.encode(plain))
