"""Tasks in lanes: complete examples, answers and loss weights, warm memories."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.tasks import Examples, TaskLanes, make_task
from tests.tasks.prompts import key_of
from tests.tiny import config

NAMES = ("passkey", "recall")
WARM = {"share": 0.5, "segments": 2, "min_tokens": 30, "max_tokens": 300}


def make(name="passkey", **sections):
  """Four lanes of six segments; the shortest examples have three segments."""
  task = {"name": name, "min_segments": 3, "pairs": 3, "distinct_keys": 8, "distinct_values": 8}
  c = config(
    model={"vocab_size": 64, "segment_length": 24 if name == "passkey" else 6},
    data={"tokenizer": "task", "carry_state": False, "lanes": 4, "segments": 6},
    task={**task, **sections.pop("task", {})},
    **sections,
  )
  source = make_task(c, name)
  return source, TaskLanes(source, c)


def examples_of(batch, lane, N):
  """The examples of a lane: segments, and tokens, targets, weights, asked of the real tokens."""
  starts = [0, *(np.flatnonzero(batch["reset_BS"][lane, 1:]) + 1).tolist()]
  for start, stop in zip(starts, [*starts[1:], batch["reset_BS"].shape[1]], strict=True):
    at = slice(start * N, stop * N)
    mask = batch["mask_BT"][lane, at]
    assert not (np.diff(mask.astype(int)) > 0).any(), "padding stands at an example's end only"
    names = ("tokens_BT", "targets_BT", "weights_BT", "asked_BT")
    rows = [batch[name][lane, at] for name in names]
    for name, row in zip(names, rows, strict=True):
      assert not row[~mask].any(), f"{name} is not empty on padding"
    if mask.any():
      assert mask.sum() > (stop - start - 1) * N, "an example takes more segments than it fills"
      yield stop - start, *(row[mask] for row in rows)
    else:
      assert stop - start == 1, "an empty segment has a reset of its own"


def check_answer(source, targets, asked, before=()):
  """Checks that the text before the targets is well-formed, and that its answers are asked for."""
  if source.facts.depth_of:
    text = source.tokenizer.decode([*before, *targets])
    assert source.tokenizer.decode(targets[asked]) == key_of(text)
  else:
    pieces = source.tokenizer.decode(targets).split()
    pairs = {k: v for k, v in zip(pieces, pieces[1:], strict=False) if k[0] == "k"}
    answers = source.tokenizer.decode(targets[asked]).split()
    asked_keys = [pieces[i - 1] for i in np.flatnonzero(asked)]
    assert answers == [pairs[k] for k in asked_keys] and len(answers) == len(set(asked_keys))


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_whole_and_asks_for_its_answer(rng, name):
  source, lanes = make(name, train={"seed": int(rng.integers(2**31))})
  for k in range(20):
    batch = lanes.batch(k)
    assert set(batch) == {
      *("tokens_BT", "targets_BT", "mask_BT", "reset_BS", "weights_BT", "asked_BT")
    }
    assert batch["reset_BS"][:, 0].all()
    for lane in range(4):
      found = list(examples_of(batch, lane, lanes.segment_length))
      assert found, "a lane without an example learns nothing"
      for segments, tokens, targets, weights, asked in found:
        assert 3 <= segments <= 6 and len(tokens) >= source.shortest_training
        assert tokens[0] == source.tokenizer.bos
        np.testing.assert_array_equal(tokens[1:], targets[:-1], "each target is the next token")
        check_answer(source, targets, asked)
        np.testing.assert_allclose(weights[asked].sum(), 1, rtol=1e-5)
        rest = 0.8 if source.facts.depth_of else 0.5
        np.testing.assert_allclose(weights[~asked].sum(), rest, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
  k=st.integers(0, 500),
  seed=st.integers(0, 99),
  first=st.integers(0, 4),
  last=st.integers(0, 4),
  name=st.sampled_from(NAMES),
  warm=st.sampled_from([{}, WARM]),
)
def test_batch_is_a_pure_function_of_seed_and_k_and_rows_are_slices(
  k, seed, first, last, name, warm
):
  _, lanes = make(name, train={"seed": seed}, warm=warm)
  _, other = make(name, train={"seed": seed}, warm=warm)
  whole, rows = lanes.batch(k), slice(first, max(first + 1, last))
  if first == 4:
    rows = slice(3, 4)
  other.batch(k + 1)
  part = other.batch(k, rows)
  assert whole.keys() == part.keys()
  for key, array in whole.items():
    assert array.dtype == part[key].dtype
    np.testing.assert_array_equal(part[key], array[rows], f"{key} of batch {k}, {rows}")
  assert np.any(lanes.batch(k + 1)["tokens_BT"] != whole["tokens_BT"])
  _, another = make(name, train={"seed": seed + 1}, warm=warm)
  assert np.any(another.batch(k)["tokens_BT"] != whole["tokens_BT"])


def test_the_longest_grows_from_the_shortest_in_the_curriculum():
  _, lanes = make("recall", task={"min_segments": 1, "curriculum_steps": 100})
  longest = [lanes.longest(k) for k in range(200)]
  assert longest == sorted(longest) and set(longest) == set(range(1, 7))
  assert longest[0] == 1 and longest[99:] == [6] * 101
  np.testing.assert_allclose(longest[50], 6**0.5, atol=0.5, err_msg="it grows geometrically")
  seen = {}
  for k in range(0, 160):
    batch = lanes.batch(k)
    sizes = {size for lane in range(4) for size, *_ in examples_of(batch, lane, 6)}
    assert max(sizes) <= lanes.longest(k), f"step {k} has an example longer than it may be"
    seen.setdefault(lanes.longest(k), set()).update(sizes)
  for most, sizes in seen.items():
    assert sizes == set(range(1, most + 1)), f"up to {most} segments, but only {sizes} occur"
  _, at_once = make("recall", task={"min_segments": 1})
  assert at_once.longest(0) == 6, "without a curriculum all lengths occur from the start"


@pytest.mark.parametrize("name", NAMES)
def test_after_a_warm_start_the_text_goes_on_where_the_companion_stood(rng, name):
  warm = {**WARM, "weight": 3.0}
  source, lanes = make(name, train={"seed": int(rng.integers(2**31))}, warm=warm)
  N, W = lanes.segment_length, 2 * lanes.segment_length
  texts = [np.zeros(0, np.int32)] * 4  # the text that each companion has read since its start
  taken = long = 0
  for k in range(60):
    batch = lanes.batch(k)
    assert batch["warm_tokens_BT"].shape == batch["warm_mask_BT"].shape == (4, W)
    assert batch["warm_reset_BS"].shape == (4, 2) and batch["warm_mask_BT"].all()
    assert not batch["warm_reset_BS"][:, 1:].any()
    np.testing.assert_array_equal(
      batch["reset_BS"][:, 0], ~batch["warm_B"], "who takes over a state must not reset it"
    )
    for lane in range(4):
      (_, tokens, targets, weights, asked), *others = examples_of(batch, lane, N)
      weight = 3.0 if batch["warm_B"][lane] else 1.0
      np.testing.assert_allclose(weights[asked].sum(), weight, rtol=1e-5)
      if batch["warm_B"][lane]:
        assert k > 0
        taken, long = taken + 1, long + (len(texts[lane]) > W)
        inputs = np.concatenate([texts[lane], tokens])
        assert inputs[0] == source.tokenizer.bos and not (inputs[1:] == inputs[0]).any()
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        check_answer(source, targets, asked, before=inputs[1 : len(texts[lane]) + 1])
      else:
        assert tokens[0] == source.tokenizer.bos
        check_answer(source, targets, asked)
      for _, tokens, targets, weights, asked in others:
        np.testing.assert_allclose(weights[asked].sum(), 1, rtol=1e-5)
        assert tokens[0] == source.tokenizer.bos, "only the first example of a chunk starts warm"
        check_answer(source, targets, asked)
      anew = batch["warm_reset_BS"][lane, 0]
      assert anew or k > 0
      texts[lane] = np.concatenate([texts[lane][:0] if anew else texts[lane],
                                    batch["warm_tokens_BT"][lane]])  # fmt: skip
  assert taken > 60 and long > 10, "a weak test: few examples started warm"


@pytest.mark.parametrize("name", NAMES)
def test_text_that_will_be_asked_for_counts_once(rng, name):
  sections = {"train": {"seed": int(rng.integers(2**31))}}
  warm = {**WARM, "min_tokens": 2000, "max_tokens": 4000, "growth": 1.5}
  source, lanes = make(name, warm=warm, **sections)
  more, start = 0, {}
  for k in range(80):
    batch = lanes.batch(k)
    assert batch["warm_times_B"].shape == (4,) and batch["warm_times_B"].dtype == np.float32
    for lane, times in enumerate(batch["warm_times_B"]):
      words = source.tokenizer.decode(batch["warm_tokens_BT"][lane])
      if batch["warm_reset_BS"][lane, 0]:
        start[lane] = k
        assert times == 1, "the first piece counts once"
      assert times == 1 or not re.search(r"\d|k\d|v\d", words), (
        f"a key counts {times} times: {words}"
      )
      more += times > 1
  assert more > 60, "a weak test: hardly anything counts more than once"
  without = make(name, warm={**warm, "growth": 1.0}, **sections)[1]
  assert "warm_times_B" not in without.batch(3)


@pytest.mark.parametrize("name", NAMES)
def test_the_filler_of_a_warm_example_counts_like_the_text_before_it(rng, name):
  seed = int(rng.integers(2**31))
  warm = {**WARM, "min_tokens": 2000, "max_tokens": 4000, "growth": 1.5}
  make_lanes = lambda **more: make(
    name, warm=warm | more, train={"seed": seed}, infini={"rule": "linear"}
  )
  (source, lanes), (_, without) = make_lanes(filler=0.5), make_lanes()
  counted, grown = np.zeros(4), 0
  for k in range(60):
    batch, plain = lanes.batch(k), without.batch(k)
    for array, values in plain.items():
      np.testing.assert_array_equal(batch[array], values, err_msg=array)
    assert "times_BT" not in plain and batch["times_BT"].dtype == np.float32
    for lane, times in enumerate(batch["times_BT"]):
      words = [source.tokenizer.decode(batch["tokens_BT"][lane, [t]]) for t in range(len(times))]
      for word in np.array(words)[times > 1]:
        assert not re.search(r"\d", word), f"{word!r}, which an answer needs, counts several times"
      several = times[times > 1]
      if len(several):
        assert batch["warm_B"][lane], "an example that starts empty counts once"
        assert len(set(several)) == 1
        np.testing.assert_allclose(several.sum(), counted[lane] / 2, rtol=1e-5)
        grown += 1
      anew, W = batch["warm_reset_BS"][lane, 0], len(batch["warm_tokens_BT"][lane])
      counted[lane] = counted[lane] * (not anew) + W * batch["warm_times_B"][lane]
  assert grown > 20, "a weak test: hardly any filler counts several times"


def test_held_out_examples_are_documents(rng):
  source, _ = make()
  seed = int(rng.integers(2**31))
  examples = Examples(source, 90, (0.0, 1.0), 3, seed)
  again = Examples(source, 90, (0.0, 1.0), 3, seed)
  assert examples.tokens.tolist() == [90] * 6
  for d in range(6):
    ids, asked = examples.read(d, 0, 90), examples.asked(d, 0, 90)
    np.testing.assert_array_equal(ids, again.read(d, 0, 90))
    check_answer(source, ids, asked)
    assert asked.argmax() >= examples.first_asked
    assert examples.asked(d, 80, 200).tolist() == asked[80:].tolist()
  assert len({examples.read(d, 0, 90).tobytes() for d in range(6)}) == 6


def test_a_held_out_example_is_the_same_whatever_else_is_asked(rng):
  source, _ = make()
  seed = int(rng.integers(2**31))
  text = lambda examples, i: examples.read(i, 0, 90).tobytes()
  many, few = (Examples(source, 90, d, 3, seed) for d in ((0.0, 0.5, 1.0), (1.0, 0.5)))
  assert [text(many, i) for i in range(3, 9)] == [text(few, i) for i in (3, 4, 5, 0, 1, 2)]
  assert text(Examples(source, 90, (0.5,), 1, seed), 0) == text(many, 3)


def test_examples_too_short_for_the_task_are_refused():
  with pytest.raises(InputError) as error:
    make(task={"min_segments": 2})
  message = str(error.value)
  assert "config.task.min_segments=2" in message and "48 tokens are too short" in message
  assert "make it 67 tokens or more" in message and "\n" not in message
