"""Examples in parts: any cut equals the slice of the whole example."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.tasks.example import Example, Span, check_length
from infini_jax.tasks.registry import make_task
from tests.tiny import config

PARTS = st.builds(
  lambda ids, size, weight, first: Span(np.array(ids, np.int32), size, weight, first),
  st.lists(st.integers(0, 9), min_size=1, max_size=5),
  st.integers(0, 12),
  st.sampled_from([0.0, 0.25, 1.0]),
  st.integers(0, 20),
)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=5), data=st.data())
def test_any_cut_is_a_slice_of_the_whole(parts, data):
  asked = data.draw(st.sets(st.integers(0, len(parts) - 1), min_size=1))
  example = Example(tuple(parts), frozenset(asked))
  n = len(example)
  ids = [p.ids[(p.first + i) % len(p.ids)] for p in parts for i in range(p.size)]
  flags = [i in asked for i, p in enumerate(parts) for _ in range(p.size)]
  weights = [p.weight for p in parts for _ in range(p.size)]
  start = data.draw(st.integers(0, n))
  stop = data.draw(st.integers(start, n + 9))
  for read, whole, dtype in (
    (example.read, ids, np.int32),
    (example.weights, weights, np.float32),
    (example.asked, flags, bool),
  ):
    got = read(start, stop)
    assert got.dtype == dtype and got.tolist() == whole[start:stop], (
      f"{read.__name__}({start}, {stop}) is not that slice of the whole example"
    )
  if True in flags:
    assert flags[example.first_asked :][0] and not any(flags[: example.first_asked])


def test_a_task_is_made_by_its_name_and_says_how_short_it_can_be():
  fields = {"data": {"tokenizer": "task", "carry_state": False}}
  for name, model in (("passkey", {"vocab_size": 64}), ("recall", {"vocab_size": 256})):
    task = make_task(config(model=model, task={"name": name}, **fields), name)
    assert bool(task.facts.depth_of) == (name == "passkey")
    assert 0 < task.shortest_training <= task.shortest
    check_length(task.shortest, task.shortest, "config.evaluation.lengths")
    with pytest.raises(InputError) as error:
      check_length(task.shortest - 1, task.shortest, "config.evaluation.lengths")
    message = str(error.value)
    assert f"config.evaluation.lengths: {task.shortest - 1} tokens are too short" in message
    assert f"make it {task.shortest} tokens or more" in message and "\n" not in message
