"""Recall of pairs: every key occurs once with its value, every question with its answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data.tokenizers import WordTokenizer
from infini_jax.tasks.passkey import words
from infini_jax.tasks.recall import Recall
from tests.tiny import config


def make(tokenizer=None, **task):
  return Recall(
    config(
      model={"vocab_size": 1024},
      data={"tokenizer": "task", "carry_state": False},
      task={"name": "recall", "min_segments": 1, **task},
    ),
    tokenizer,
  )


def check(task, example, pairs=None):
  """Checks an example; returns its pairs in the order of the text and of the questions."""
  pieces = task.tokenizer.decode(example.read(0, len(example))).split()
  assert len(pieces) == len(example), "every token is a piece of the task's own"
  end = pieces.index("?")
  text, questions = [p for p in pieces[:end] if p != "."], pieces[end + 1 :]
  stated = list(zip(text[::2], text[1::2], strict=True))
  asked = list(zip(questions[::2], questions[1::2], strict=True))
  pairs = len(stated) if pairs is None else pairs
  for key, value in (*stated, *asked):
    assert key[0] == "k" and value[0] == "v", f"no pair: {key} {value}"
    place = pieces.index(key)
    assert pieces[place + 1] == dict(stated)[key], "a value stands right after its key"
    assert place % 2, "behind the document mark, a pair stands at an even place of its segment"
  assert len(stated) == len({key for key, _ in stated}) == pairs, "every key stands once"
  assert sorted(asked) == sorted(stated), "every question has its own value for answer"
  marked = np.flatnonzero(example.asked(0, len(example)))
  np.testing.assert_array_equal(marked, end + 2 + 2 * np.arange(pairs), "the values are asked for")
  return stated, asked


@settings(max_examples=80, deadline=None)
@given(
  pairs=st.integers(1, 12), more=st.integers(0, 6), gaps=st.integers(0, 40), seed=st.integers(0)
)
def test_examples_are_well_formed_and_exact(pairs, more, gaps, seed):
  task = make(pairs=pairs, distinct_keys=pairs + more, distinct_values=3)
  rng = np.random.default_rng(seed)
  for held_out, shortest in ((True, task.shortest), (False, task.shortest_training)):
    length = shortest + gaps
    example = task.example(rng, length, held_out=held_out)
    assert len(example) == len(example.read(0, length)) == length
    stated, _ = check(task, example, pairs if held_out else None)
    assert 1 <= len(stated) <= pairs
    weights, asked = example.weights(0, length), example.asked(0, length)
    np.testing.assert_allclose(weights[asked], 1 / len(stated), rtol=1e-6)
    np.testing.assert_allclose(weights[~asked].sum(), 0.5, rtol=1e-4)
    assert np.ptp(weights[~asked]) == 0


def test_training_has_as_many_pairs_as_fit(rng):
  """Few pairs are easy to guess. Evaluation asks the same kind of questions as training."""
  task = make(pairs=3)
  for length, pairs in ((50, 3), (11, 2), (task.shortest_training, 1)):
    check(task, task.example(rng, length, held_out=False), pairs)


def test_order_pairs_and_places_are_fresh_in_every_example(rng):
  task = make(pairs=8, distinct_keys=64, distinct_values=64)
  found = [check(task, task.example(rng, 200, held_out=True), 8) for _ in range(20)]
  assert len({tuple(stated) for stated, _ in found}) == 20
  assert any([k for k, _ in stated] != [k for k, _ in asked] for stated, asked in found)
  seed = int(rng.integers(2**32))
  a, b = (task.example(np.random.default_rng(seed), 200, held_out=True) for _ in range(2))
  np.testing.assert_array_equal(a.read(0, 200), b.read(0, 200))
  places = {task.example(rng, 200, held_out=True).read(0, 160).argmax() for _ in range(20)}
  assert len(places) > 3, "the pairs always stand at the same places"


def test_earlier_text_is_filler_and_an_example_after_it_is_whole(rng):
  task = make(pairs=4, distinct_keys=8)
  before = task.beginning(rng, 1000)
  assert set(task.tokenizer.decode(before.read(0, 1000)).split()) == {"."}
  check(task, task.continuation(rng, before, 512, 60))


@settings(max_examples=60, deadline=None)
@given(
  pairs=st.integers(1, 8), more=st.integers(1, 60), far=st.integers(0, 300), seed=st.integers(0)
)
def test_with_a_span_all_pairs_stand_at_the_beginning(pairs, more, far, seed):
  span = 2 * pairs + more
  task = make(pairs=pairs, distinct_keys=pairs + 2, distinct_values=3, span=span)
  example = task.example(np.random.default_rng(seed), span + 4 * pairs + far, held_out=True)
  check(task, example, pairs)
  filler, question = task.tokenizer.encode(" ."), example.first_asked - 2
  assert (example.read(span, question) == filler).all()
  assert example.filler(span, question).all() and not example.filler(0, span).all()


@settings(max_examples=100, deadline=None)
@given(
  pairs=st.integers(1, 6), chunks=st.integers(1, 30), n=st.integers(6, 60), seed=st.integers(0)
)
def test_pairs_that_companions_have_read_are_asked_for(pairs, chunks, n, seed):
  """A key and its value may be on two sides of the border. Pairs not stated are not asked for."""
  rng, read = np.random.default_rng(seed), 2 * chunks
  task = make(pairs=pairs, distinct_keys=8, distinct_values=8, span=40)
  before = task.beginning(rng, 200)
  after = task.continuation(rng, before, read, n)
  assert len(after) == len(after.read(0, n)) == n
  words = task.tokenizer.decode(np.concatenate([before.read(0, read), after.read(0, n)])).split()
  border = words.index("?")
  text, questions = [w for w in words[:border] if w != "."], words[border + 1 :]
  stated = dict(zip(text[::2], text[1::2], strict=True))
  assert len(stated) == len(text) // 2, "a key stands twice"
  asked = list(zip(questions[::2], questions[1::2], strict=True))
  assert asked and set(asked) <= set(stated.items())
  at = words.index("?") - read + 1
  marked = np.flatnonzero(after.asked(0, n))
  np.testing.assert_array_equal(marked, at + 1 + 2 * np.arange(len(asked)))
  np.testing.assert_allclose(after.weights(0, n)[marked], 1 / len(asked), rtol=1e-6)


def test_companions_read_pairs_and_filler_alone(rng):
  task = make(pairs=4, distinct_keys=8, span=40)
  kinds = [bool(task.beginning(rng, 100).filler(0, 100).all()) for _ in range(60)]
  assert 5 < sum(kinds) < 40, "one in three is filler alone"


def test_bad_input_is_named_with_its_remedy(rng):
  task = make(pairs=4)
  foreign = {"data": {"tokenizer": "bytes", "carry_state": False}}
  wide = {"model": {"vocab_size": 1024}, "task": {"name": "recall", "min_segments": 1}}
  for wrong, match in (
    (lambda: task.example(rng, 16, held_out=True), "recall example of 16 .*make it 18 or more"),
    (lambda: Recall(config(**foreign, **wide)), "tokenizer='bytes': recall has its own.*'task'"),
    (
      lambda: make(pairs=5, distinct_keys=4),
      "config.task.pairs=5 is more than config.task.distinct_keys=4",
    ),
    (lambda: make(WordTokenizer(words())), "vocabulary is not that of recall"),
  ):
    with pytest.raises(InputError, match=match) as error:
      wrong()
    assert "\n" not in str(error.value)
