"""The pass key's prompt has the paper's words and an exact length, and only filler is cut."""

import tracemalloc

import numpy as np
import pytest
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data.tokenizers import (
  ByteTokenizer,
  HuggingFaceTokenizer,
  SentencePieceTokenizer,
  WordTokenizer,
  train_sentencepiece,
)
from infini_jax.tasks.passkey import Passkey, words
from tests.tasks.prompts import ASKED, FILLER, INTRO, PAPER, STATED, key_of
from tests.tiny import config

KINDS = ("words", "bytes", "sentencepiece", "huggingface")


def make(kind_or_tokenizer="words", *, seed=0, **task):
  c = config(
    model={"vocab_size": 1024},
    data={"tokenizer": "task", "carry_state": False},
    task={"name": "passkey", **task},
    train={"seed": seed},
  )
  if kind_or_tokenizer == "words":
    return Passkey(c)
  return Passkey(c, kind_or_tokenizer)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  """Every kind. The last two have pieces of several digits; the last one only pieces like 123, so
  other keys have more tokens."""
  prompts = lambda keys: [
    f"{INTRO}{FILLER} The pass key is {key}. Remember it. {key} is the pass key." for key in keys
  ]
  keys = np.random.default_rng(0).integers(0, 10_000, 600)
  file = tmp_path_factory.mktemp("model") / "passkey.model"
  train_sentencepiece(prompts(keys), 450, file)
  bpe = huggingface.Tokenizer(huggingface.models.BPE())
  bpe.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = huggingface.decoders.ByteLevel()
  trainer = huggingface.trainers.BpeTrainer(
    vocab_size=500,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=huggingface.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  in_order = [("0123456789" * 2)[d : d + 4] for d in range(10)]
  bpe.train_from_iterator(prompts(in_order * 20), trainer)
  found = {
    "words": WordTokenizer(words()),
    "bytes": ByteTokenizer(),
    "sentencepiece": SentencePieceTokenizer(file.read_bytes()),
    "huggingface": HuggingFaceTokenizer(bpe.to_str().encode()),
  }
  count = lambda kind, key: len(found[kind].encode(f" {key}"))
  assert min(count("sentencepiece", key) for key in keys) < 4, "no digits were merged"
  assert count("huggingface", 1234) <= 2 < 4 <= count("huggingface", 9054)
  return found


def text_of(task, example):
  return task.tokenizer.decode(example.read(0, len(example)))


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_with_whole_filler_it_is_the_papers_prompt_word_for_word(rng, tokenizers, kind):
  task = make(tokenizers[kind])
  filler = len(task.tokenizer.encode(FILLER))
  example = task.example(rng, task.shortest + 3 * filler, 2 / 3, held_out=False)
  text = text_of(task, example)
  key = key_of(text)
  assert text == f"{PAPER.replace('9054', key)} {key}"
  answer = example.read(example.first_asked, len(example))
  assert task.tokenizer.decode(answer) == key, "the digits are asked for, and nothing else"


@pytest.mark.parametrize("kind", KINDS)
def test_any_length_is_exact_and_only_filler_is_cut(rng, tokenizers, kind):
  task = make(tokenizers[kind])
  lengths = [task.shortest + i for i in range(12)] + rng.integers(task.shortest, 900, 20).tolist()
  for length in lengths:
    for depth in (0, rng.random(), 1, None):
      for held_out in (False, True):
        example = task.example(rng, length, depth, held_out=held_out)
        assert len(example) == len(example.read(0, length)) == length
        key = key_of(text_of(task, example))
        assert len(key) == 4 and key[0] != "0"


@pytest.mark.parametrize("digits", range(1, 33))
def test_keys_of_1_to_32_digits(rng, tokenizers, digits):
  for kind in KINDS:
    task = make(tokenizers[kind], digits=digits)
    for _ in range(8):
      example = task.example(rng, task.shortest + int(rng.integers(9)), held_out=False)
      assert len(key_of(text_of(task, example))) == digits, (
        f"{kind}: no key of {digits} digits in {text_of(task, example)!r}"
      )


def test_depth_is_the_share_of_filler_before_the_key(rng, tokenizers):
  task = make(tokenizers["bytes"])  # a character is a token
  for length in (task.shortest, 300, 777, 4001):
    room = length - task.shortest
    for depth in (0.0, 0.25, 0.5, 1.0):
      text = text_of(task, task.example(rng, length, depth, held_out=True))
      before = STATED.search(text).start() - len(INTRO)
      after = ASKED.search(text).start() - STATED.search(text).end()
      assert before + after == room
      assert abs(before - depth * room) <= 0.5, f"depth {depth}: {before} of {room} stand before"


def test_training_has_keys_at_the_very_start_and_everywhere(rng):
  """A model that never sees a key right after the introduction does not recall one there."""
  task = make()
  for draw in (
    lambda: task.example(rng, 10_000, held_out=False),
    lambda: task.beginning(rng, 10_000),
  ):
    before = [sum(span.size for span in draw().spans[1:2]) for _ in range(1500)]
    for low, high in ((0, 0), (1, 9), (10, 99), (100, 999), (1000, 9000)):
      share = np.mean([low <= n <= high for n in before])
      assert share > 0.003, f"{share:.1%} of keys have {low} to {high} tokens of filler before them"


def test_held_out_keys_are_a_tenth_that_depends_on_the_seed_and_never_trained_on(rng):
  found = []
  for seed in (0, 1):
    task = make(digits=3, seed=seed)

    def keys(held_out, count, task=task):
      drawn = (task.example(rng, task.shortest, 0, held_out=held_out) for _ in range(count))
      return {key_of(text_of(task, example)) for example in drawn}

    held_out, trained = keys(True, 600), keys(False, 400)
    assert not held_out & trained, "a key is both trained on and held out"
    # 900 keys; the seed fixes how many are held out, and 600 draws find nearly all.
    assert 60 < len(held_out) < 130, f"{len(held_out)} of 900 keys are held out: want a tenth"
    found.append(held_out)
  assert found[0] != found[1]


@pytest.mark.parametrize("digits,held_out", [(1, 1), (2, 9)])
@pytest.mark.parametrize("seed", [13, 782])
def test_of_few_keys_a_tenth_is_held_out_whatever_the_seed(rng, digits, held_out, seed):
  task = make(digits=digits, seed=seed)
  examples = [task.example(rng, task.shortest, held_out=True) for _ in range(20 * held_out)]
  assert 0 < len({key_of(text_of(task, e)) for e in examples}) <= held_out


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_draws_the_same_example(rng, tokenizers, kind):
  seed = int(rng.integers(2**32))
  task, again = make(tokenizers[kind]), make(tokenizers[kind])
  read = lambda t, s: t.example(np.random.default_rng(s), 500, held_out=False).read(0, 500)
  np.testing.assert_array_equal(read(task, seed), read(again, seed))
  others = {read(task, seed + i).tobytes() for i in range(20)}
  assert len(others) > 10, "all examples are the same"


@pytest.mark.parametrize("kind", KINDS)
def test_answer_weighs_1_and_the_rest_what_the_config_says(rng, tokenizers, kind):
  task = make(tokenizers[kind], repeat_weight=0.25, context_weight=0.125)
  length = int(rng.integers(task.shortest, 2000))
  check_weights(task, task.example(rng, length, held_out=False), [(0.25, "repeat")])


def check_weights(task, example, extra):
  """Checks that the answer weighs 1, the rest 0.125, and the parts in `extra` as given there."""
  n = len(example)
  weights, asked = example.weights(0, n).astype(float), example.asked(0, n)
  np.testing.assert_allclose(weights[asked].sum(), 1, rtol=1e-4)
  assert np.ptp(weights[asked]) == 0, "the tokens of an answer share its weight"
  rest = weights[~asked]
  np.testing.assert_allclose(rest.sum(), 0.125 + sum(w for w, _ in extra), rtol=1e-4)
  if extra:
    heavy = rest > rest.min() * 1.001
    np.testing.assert_allclose(rest[heavy].sum(), extra[0][0], rtol=1e-4)
    text = task.tokenizer.decode(example.read(0, n)[~asked][heavy])
    assert text.strip().endswith("is the pass key."), f"{text!r} has the repetition's weight"
  else:
    np.testing.assert_allclose(rest, rest[0], rtol=1e-4, err_msg="the rest weighs all the same")


def test_no_weight_for_the_context_and_none_for_the_repetition(rng):
  for fields in ({"context_weight": 0.0}, {"repeat_weight": 0.0, "context_weight": 0.0}):
    task = make(**fields)
    example = task.example(rng, 300, held_out=False)
    total = 1 + (0 if "repeat_weight" in fields else 0.3)
    np.testing.assert_allclose(example.weights(0, 300).sum(), total, rtol=1e-5)


TASK = make()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(TASK.shortest, 400), data=st.data())
def test_any_cut_is_a_slice_of_the_whole(seed, length, data):
  example = TASK.example(np.random.default_rng(seed), length, held_out=False)
  start = data.draw(st.integers(0, length))
  stop = data.draw(st.integers(start, length))
  for read in (example.read, example.weights, example.asked):
    np.testing.assert_array_equal(read(start, stop), read(0, length)[start:stop])


def test_a_million_tokens_are_never_held_at_once(rng):
  tracemalloc.start()
  example = TASK.example(rng, 1_000_000, 0.5, held_out=True)
  head, tail = example.read(0, 500), example.read(999_500, 1_000_000)
  assert example.asked(999_500, 1_000_000)[-4:].all()
  assert example.first_asked == 999_996 and len(example) == 1_000_000
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 300_000, f"{peak:,} bytes for two windows of 500 tokens"
  assert TASK.tokenizer.decode(head).startswith(INTRO)
  assert ASKED.search(TASK.tokenizer.decode(tail))


@pytest.mark.parametrize("kind", KINDS)
def test_continuations_make_one_text_whatever_was_read_before(rng, tokenizers, kind):
  """The answer is the key that was stated before the border, across it or after it."""
  task = make(tokenizers[kind], context_weight=0.125)
  planned = task.shortest + 100
  tell = lambda example, stop: STATED.search(task.tokenizer.decode(example.read(0, stop)))
  beginnings = [task.beginning(rng, planned) for _ in range(80)]
  stated = [b for b in beginnings if tell(b, planned)]
  filler = lambda b: (INTRO + FILLER * 20).startswith(task.tokenizer.decode(b.read(0, planned + 8)))
  silent = [b for b in beginnings if filler(b)]  # the statement of the key has not begun
  assert stated and silent, "half of the beginnings should have stated their key"
  for before in (*stated[:2], *silent[:1]):
    for read in range(1, planned + 1):
      n = task.shortest + int(rng.integers(60))
      example = task.continuation(rng, before, read, n)
      assert len(example) == len(example.read(0, n)) == n
      joined = np.concatenate([before.read(0, read), example.read(0, n)])
      key = key_of(task.tokenizer.decode(joined))
      assert task.tokenizer.decode(example.read(0, n)[example.asked(0, n)]).strip() == key
      if not tell(before, planned):  # the continuation has its own key, with its repetition
        check_weights(task, example, [(0.3, "repeat")])
      elif tell(before, read):
        check_weights(task, example, [])


def test_keys_of_continuations_are_trained_ones(rng):
  task = make(digits=1, seed=7)  # one key of ten is held out
  held_out = key_of(text_of(task, task.example(rng, task.shortest, held_out=True)))
  for _ in range(30):
    before = task.beginning(rng, 100)
    example = task.continuation(rng, before, 50, 200)
    assert key_of(task.tokenizer.decode([*before.read(0, 50), *example.read(0, 200)])) != held_out


def test_the_fingerprint_tells_tasks_and_vocabularies_apart(tokenizers):
  """Weights are fields of the config, which a run compares anyway."""
  tasks = [make(), make(digits=5), make(tokenizers["bytes"])]
  assert len({task.fingerprint for task in tasks}) == 3
  assert make().fingerprint == make().fingerprint


def test_bad_input_is_named_with_its_remedy(rng, tokenizers):
  for wrong, match in (
    (lambda: make(digits=33), "config.task.digits=33: choose 1 to 32"),
    (lambda: make(digits=0), "config.task.digits=0: must be more than 0"),
    (lambda: make(WordTokenizer([" The", " pass"])), "cannot write the pass key prompt.*digits"),
    (lambda: make(WordTokenizer(words()[1:])), "cannot write the pass key.*choose a tokenizer"),
    (lambda: TASK.example(rng, TASK.shortest - 1, held_out=True), "a pass key prompt of 66 tokens"),
  ):
    with pytest.raises(InputError, match=match) as error:
      wrong()
    assert "\n" not in str(error.value)
