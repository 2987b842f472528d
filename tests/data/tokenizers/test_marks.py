"""The marks that begin and end a document are declared or special tokens. No text gives them."""

import json
import sys

import pytest
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.store import workers
from infini_jax.data.store.prepare import prepare
from infini_jax.data.tokenizers import HuggingFaceTokenizer, load_saved, load_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/|_ ."
DEEPSEEK = ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")


def token(id, content, special=True, **flags):
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | flags
  return {"id": id, "content": content, "special": special} | flags


def content(model, added, **parts):
  names = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
  whole = {"version": "1.0", **dict.fromkeys(names), "added_tokens": added, "model": model}
  return json.dumps(whole | parts).encode()


def bpe(tokens, added, merges=(), **settings):
  vocab = {piece: id for id, piece in enumerate(tokens)}
  model = {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges]} | settings
  return content(model, added, decoder={"type": "Fuse"})


def characters(*names, special=True, **settings):
  """A vocabulary of these names and one token for each letter."""
  added = [token(id, name, special) for id, name in enumerate(names)]
  return bpe([*names, *LETTERS], added, **settings)


def unigram(*names):
  pieces = [[name, 0.0] for name in names] + [[c, -5.0] for c in LETTERS]
  model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
  added = [token(id, name) for id, name in enumerate(names)]
  return content(model, added, decoder={"type": "Fuse"})


def words(kind="WordLevel", unknown="<unk>", cut={"type": "WhitespaceSplit"}):  # noqa: B006
  model = {"type": kind, "vocab": WORDS, "unk_token": unknown}
  more = {"continuing_subword_prefix": "", "max_input_chars_per_word": 100}
  return content(model | (more if kind == "WordPiece" else {}), SPECIALS, pre_tokenizer=cut)


WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: 3 + i for i, c in enumerate(LETTERS)}}
SPECIALS = [token(0, "<unk>"), token(1, "<s>", lstrip=True), token(2, "</s>", normalized=True)]
MERGED = [("<", "s"), ("<s", ">"), ("<s>", "a"), ("a", "b")]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARIES = {
  "merged": bpe(
    ["<s>", *LETTERS, "<s", "<s>a", "ab"], [token(0, "<s>")], MERGED, ignore_merges=True
  ),
  "plain": characters("<|endoftext|>", special=False),
  "stripped": bpe(["</s>", *LETTERS], [token(0, "</s>", False, lstrip=True, rstrip=True)]),
  "fallback": bpe(["</s>", *BYTES, *LETTERS], [token(0, "</s>")], byte_fallback=True),
  "unigram": unigram("<unk>", "<s>", "</s>", "<pad>"),
  "words": words(),
  "pieces": words("WordPiece"),
}
NAMED = st.sampled_from(["<s>", "</s>", "<|endoftext|>", "<pad>", "<unk>", " ", "ab", "<", "a"])
TEXTS = st.one_of(
  st.lists(NAMED, max_size=8).map("".join), st.text(LETTERS, max_size=30), st.text(max_size=20)
)


@pytest.fixture(scope="module")
def vocabularies():
  return {name: HuggingFaceTokenizer(made) for name, made in VOCABULARIES.items()}


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_no_text_makes_a_mark_in_any_vocabulary(vocabularies, text):
  for name, tokenizer in vocabularies.items():
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos, tokenizer.eos} & set(ids.tolist()), name
    if set(text) <= set(LETTERS) and name not in ("words", "pieces"):  # these drop spaces
      assert tokenizer.decode(ids) == text, f"{name}: a text of its letters must come back"


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab cd.", max_size=30))
def test_other_text_is_encoded_as_the_library_does(vocabularies, text):
  for name, tokenizer in vocabularies.items():
    plain = huggingface.Tokenizer.from_str(VOCABULARIES[name].decode())
    assert tokenizer.encode(text).tolist() == plain.encode(text, add_special_tokens=False).ids, name


def test_html_tags_and_other_ordinary_pieces_are_no_marks():
  added = [token(0, "<eos>"), token(1, "<bos>"), token(2, "<s>", False), token(3, "</s>", False)]
  tags = HuggingFaceTokenizer(bpe(["<eos>", "<bos>", "<s>", "</s>", *LETTERS], added))
  assert (tags.bos, tags.eos) == (1, 0) and tags.encode("<s>").tolist() == [2]
  end = len(LETTERS) + 2
  code = HuggingFaceTokenizer(
    bpe(["<s>", "</s>", *LETTERS], [token(end, "<|endoftext|>"), token(end + 1, "<|im_end|>")])
  )
  assert (code.bos, code.eos) == (end, end)
  with pytest.raises(InputError, match=r"has a usual name \(it has no special tokens\); name them"):
    HuggingFaceTokenizer(bpe(["<s>", "</s>", *LETTERS], []))
  with pytest.raises(InputError, match=r"may end a document \(</s> 0, <.endoftext.> 1\); name"):
    HuggingFaceTokenizer(characters("</s>", "<|endoftext|>"))


@pytest.fixture
def folder(tmp_path):
  names = ("<s>", "</s>", "<|endoftext|>", "<|im_end|>", "<x>")
  (tmp_path / "tokenizer.json").write_bytes(characters(*names))

  def marks(**files):
    for name, said in files.items():
      (tmp_path / f"{name}.json").write_text(json.dumps(said))
    made = load_tokenizer(f"huggingface:{tmp_path}/tokenizer.json")
    return made.bos, made.eos

  return marks


def test_marks_are_those_that_the_other_files_declare(folder):
  with pytest.raises(InputError, match="several of its special tokens may end"):
    folder()
  assert folder(generation_config={"eos_token_id": [4, 1]}) == (0, 4)
  assert folder(config={"bos_token_id": 2, "eos_token_id": 2}) == (2, 2)
  assert folder(special_tokens_map={"eos_token": {"content": "</s>"}}) == (2, 1)
  added = {"__type": "AddedToken", "content": "<x>"}
  assert folder(tokenizer_config={"bos_token": added, "eos_token": "a"}) == (4, 5)
  assert folder(tokenizer_config={"bos_token": None, "eos_token": ""}) == (2, 1)


def test_text_never_gives_a_declared_piece(folder, tmp_path):
  assert folder(tokenizer_config={"bos_token": "<s>", "eos_token": "a"}) == (0, 5)
  tokenizer = load_tokenizer(f"huggingface:{tmp_path}/tokenizer.json")
  assert 5 not in tokenizer.encode("banana <s>").tolist()


@pytest.mark.parametrize(
  ("files", "said"),
  [
    ({"tokenizer_config": {"eos_token": "<y>"}}, "eos_token '<y>' is not a token of tokenizer.js"),
    ({"tokenizer_config": {"eos_token": 7}}, "eos_token 7 is not a token of"),
    ({"special_tokens_map": {"bos_token": {"content": "<y>"}}}, "map.json: bos_token '<y>'"),
    ({"config": {"eos_token_id": 999}}, "eos_token_id=999 is not an id of its 38; correct it"),
    ({"config": {"eos_token_id": [1, -1]}}, "eos_token_id=-1 is not an id"),
    ({"config": {"eos_token_id": 40, "vocab_size": 64}}, "eos_token_id=40 is not a token of tok"),
    ({"generation_config": {"eos_token_id": True}}, "eos_token_id=True is not an id"),
    (
      {
        "tokenizer_config": {
          "eos_token": "<x>",
          "added_tokens_decoder": {"3": {"content": "<x>", "special": True}},
        }
      },
      "eos_token '<x>' is 4 in tokenizer.json, and 3 by the tokens that",
    ),
    (
      {"tokenizer_config": {"eos_token": "<x>"}, "added_tokens": {"<x>": "four"}},
      "added_tokens.json: 'four' is not an id of a token '<x>'",
    ),
  ],
)
def test_wrong_declarations_are_refused(folder, files, said):
  with pytest.raises(InputError, match=said) as error:
    folder(**files)
  assert "\n" not in str(error.value)


def test_the_end_of_a_chat_turn_ends_documents_only_if_it_is_declared(tmp_path):
  file = tmp_path / "tokenizer.json"
  file.write_bytes(characters("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
  chat = {"eos_token": "<|im_end|>", "bos_token": None}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(chat))
  assert load_tokenizer(f"huggingface:{file}").eos == 2
  (tmp_path / "chat_template.jinja").write_text("{{ message }}<|im_end|>")
  made = load_tokenizer(f"huggingface:{file}")
  assert (made.bos, made.eos) == (0, 0)
  (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
  assert load_tokenizer(f"huggingface:{file}").eos == 2


def test_deepseeks_names_are_found_and_declared(tmp_path):
  file = tmp_path / "tokenizer.json"
  file.write_bytes(characters(*DEEPSEEK))
  made = load_tokenizer(f"huggingface:{file}")
  assert (made.bos, made.eos) == (0, 1)


def test_dropout_is_off_and_ids_are_those_of_the_file():
  merges = [("a", "b"), ("ab", "c")]
  tokens = ["<s>", *LETTERS, "ab", "abc"]
  made = [bpe(tokens, [token(0, "<s>")], merges, dropout=d) for d in (None, 0.5, 1.0)]
  first, *random = [HuggingFaceTokenizer(each) for each in made]
  for tokenizer in random:
    ids = {tuple(tokenizer.encode("abcabc ab").tolist()) for _ in range(20)}
    assert ids == {tuple(first.encode("abcabc ab").tolist())}
  gap = HuggingFaceTokenizer(
    bpe(["<s>", "a"], [token(0, "<s>"), token(7, "<x>", False), token(9, "<y>", False)])
  )
  assert gap.encode("a<y>a<x>").tolist() == [1, 9, 1, 7] and gap.size == 10
  for added, said in (
    ([token(0, "<s>"), token(1, "<x>", False)], "has the id 1, but id 1 is 'a' in the same"),
    ([token(0, "<s>"), token(2**31 - 1, "<x>")], "id 2147483647, far behind the last piece, 1"),
    ([token(0, "<s>"), token(5, "a", False)], "has the id 5, but token 'a' is 1 in the same"),
  ):
    with pytest.raises(InputError, match=said):
      HuggingFaceTokenizer(bpe(["<s>", "a"], added))


def test_marks_are_recorded_and_what_was_saved_before_keeps_its_own(tmp_path):
  added = [token(0, "<eos>"), token(1, "<bos>"), token(2, "<s>", False), token(3, "</s>", False)]
  tags = bpe(["<eos>", "<bos>", "<s>", "</s>", *LETTERS], added)
  made = HuggingFaceTokenizer(tags)
  made.save(tmp_path / "new")
  again = load_saved(tmp_path / "new")
  assert (again.bos, again.eos, again.fingerprint) == (1, 0, made.fingerprint)
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "tokenizer.json").write_bytes(tags)
  old = load_saved(tmp_path / "old")  # of a version that took the first usual name of any token
  assert (old.bos, old.eos) == (2, 3) and old.fingerprint != made.fingerprint
  assert not {2, 3} & set(old.encode("<s>a</s>").tolist())
  gaps = bpe(["<s>", "a"], [token(0, "<s>"), token(7, "<x>", False)])
  (tmp_path / "old" / "tokenizer.json").write_bytes(gaps)
  with pytest.raises(InputError, match="when ids of added tokens were other than in the file"):
    load_saved(tmp_path / "old")
  (tmp_path / "new" / "tokenizer.marks.json").write_text("[1")
  with pytest.raises(InputError, match="marks.json: not two ids"):
    load_saved(tmp_path / "new")
  (tmp_path / "new" / "tokenizer.marks.json").write_text("[1, 99]")
  with pytest.raises(InputError, match="has no id 99, but its marks name it"):
    load_saved(tmp_path / "new")


def test_a_text_that_cannot_be_encoded_is_reported_in_one_line(capfd):
  """Also if Rust panics: a worker cannot send that error to its parent, and Rust prints it."""
  endless = {"type": "Split", "pattern": {"Regex": "(?:a|a)+b"}, "behavior": "Isolated"}
  for made, text, said in (
    (words(unknown="[UNK]"), "zz top", "a text of 6 characters .WordLevel error.*; leave the text"),
    (
      words(cut=endless | {"invert": False}),
      "a" * 60 + "db",
      "a text of 62 characters .*retry-limit",
    ),
    (words(unknown="<s>"), "zz", "lacks, and its unknown token, id 1, is also bos or eos; choose"),
  ):
    tokenizer = HuggingFaceTokenizer(made)
    with pytest.raises(InputError, match=said) as error:
      tokenizer.encode(text)
    assert "\n" not in str(error.value)
    assert tokenizer.encode("d").tolist() == [WORDS["d"]], "it is of no more use"
  assert capfd.readouterr().err == ""
  sys.stderr.write("and what follows is heard\n")
  assert capfd.readouterr().err == "and what follows is heard\n"


def test_a_worker_names_the_document_that_its_tokenizer_fails_on(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(workers, "SPAWN_ABOVE", 0)
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  for name, text in (("a", "a b"), ("b", "c d"), ("odd", "zz")):
    (corpus / f"{name}.txt").write_text(text)
  (tmp_path / "tokenizer.json").write_bytes(words(unknown="[UNK]"))
  spec = f"huggingface:{tmp_path}/tokenizer.json"
  for count in (2, 1):
    with pytest.raises(InputError, match=r"^odd.txt: the tokenizer fails on a text of 2 char"):
      prepare(str(corpus), tmp_path / "store", spec, workers=count, console=Console(quiet=True))
  assert capfd.readouterr().err == ""
