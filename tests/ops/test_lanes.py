"""Choosing states lane by lane, for all shapes and all places of the lane dimension."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops.attention import Segment, append, close_full
from infini_jax.ops.lanes import where_lane
from tests.tiny import array

FLAG = np.array([True, False, True])


class State(NamedTuple):
  x: jnp.ndarray
  y: jnp.ndarray | None


def state(rng, *shape, lanes=3, layers=()):
  draw = lambda *more: array(rng.standard_normal((*layers, lanes, *more)), jnp.float32)
  return State(draw(*shape), draw())


@pytest.mark.parametrize("layers", [(), (2,)])
@pytest.mark.parametrize("lanes", [1, 3])
def test_each_lane_is_of_the_state_that_its_flag_says(rng, layers, lanes):
  """`yes` may have one lane that stands for all."""
  yes, no = state(rng, 4, 5, lanes=lanes, layers=layers), state(rng, 4, 5, layers=layers)
  found = where_lane(array(FLAG), yes, no, axis=len(layers))
  for got, y, n in zip(found, yes, no, strict=True):
    got, y, n = (np.moveaxis(np.asarray(v), len(layers), 0) for v in (got, y, n))
    for lane, flag in enumerate(FLAG):
      expected = (y[0] if lanes == 1 else y[lane]) if flag else n[lane]
      np.testing.assert_array_equal(got[lane], expected)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, bool])
def test_a_number_becomes_the_type_of_the_state(dtype):
  no = State(jnp.ones((3, 2), dtype), None)
  found = where_lane(array(FLAG), 0, no)
  assert found.x.dtype == dtype and found.y is None
  assert found.x.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_tokens_go_behind_what_is_there_and_full_segments_begin_anew():
  zeros, tokens = jnp.zeros((3, 4, 1, 1)), jnp.ones((3, 2, 1, 1))
  segment = Segment(zeros, zeros, jnp.array([0, 2, 3]))
  mask = jnp.array([[True, True], [True, True], [True, False]])
  position, longer = append(segment, tokens, tokens, mask)
  assert position.tolist() == [[0, 1], [2, 3], [3, 4]]
  written = [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
  assert longer.k_BNKE[..., 0, 0].tolist() == written, "padding goes into no slot"
  assert longer.v_BNKU[..., 0, 0].tolist() == written
  assert longer.mask().sum(1).tolist() == [2, 4, 4]
  full, after = close_full(longer, 4)
  assert full.tolist() == [False, True, True] and after.fill_B.tolist() == [2, 0, 0]
