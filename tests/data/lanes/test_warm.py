"""Companions read every chunk of every text in order, with the planned lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import WarmConfig
from infini_jax.data.lanes.warm import PLANNED, Companions, counts


@settings(max_examples=40, deadline=None)
@given(
  segments=st.integers(1, 4),
  length=st.integers(1, 64),
  least=st.integers(1, 300),
  more=st.integers(0, 2000),
  seed=st.integers(0, 9),
)
def test_every_chunk_of_every_text_is_read_in_order(segments, length, least, more, seed):
  config = WarmConfig(share=1.0, segments=segments, min_tokens=least, max_tokens=least + more)
  companions = Companions(config, length, seed)
  W = companions.tokens
  assert W == segments * length
  for lane in (0, 5):
    stream = chunk = 0
    for k in range(300):
      assert companions.reading(lane, k) == (stream, chunk)
      planned = companions.planned(lane, stream)
      assert planned % W == 0
      assert planned == W or least - W / 2 <= planned <= least + more + W / 2
      stream, chunk = (stream, chunk + 1) if (chunk + 1) * W < planned else (stream + 1, 0)


def test_reading_continues_over_blocks_of_plans_and_from_any_step(rng):
  config = WarmConfig(share=1.0, segments=1, min_tokens=1, max_tokens=64)
  companions, other = (Companions(config, 16, 3) for _ in range(2))
  steps = sum(companions.planned(2, s) // 16 for s in range(2 * PLANNED + 3))
  assert companions.reading(2, steps) == (2 * PLANNED + 3, 0)
  assert companions.reading(2, steps - 1).stream == 2 * PLANNED + 2
  for k in rng.integers(0, steps, 20).tolist():
    assert other.reading(2, k) == companions.reading(2, k), "the plan depends on what was asked"


def test_planned_lengths_are_log_uniform(rng):
  config = WarmConfig(share=1.0, segments=1, min_tokens=1000, max_tokens=64_000)
  companions = Companions(config, 1, int(rng.integers(2**32)))
  tokens = np.sort([companions.planned(lane, s) for lane in range(4) for s in range(2048)])
  share = np.log(tokens / 1000) / np.log(64)
  even = (np.arange(len(tokens)) + 0.5) / len(tokens)
  # A Kolmogorov-Smirnov test; it fails by chance once in 10^8 runs.
  assert np.abs(share - even).max() < 0.035, "the logarithms of the lengths are not even"
  lanes = {tuple(companions.planned(lane, s) for s in range(8)) for lane in range(6)}
  assert len(lanes) == 6, "lanes read texts of the same lengths"


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_lane_takes_its_companions_state_with_the_given_probability(rng, share):
  config = WarmConfig(share=share, segments=2, min_tokens=8, max_tokens=100)
  companions = Companions(config, 4, int(rng.integers(2**32)))
  taken = 0
  for lane in range(4):
    assert companions.warm(lane, 0) is None, "nothing was read before the first step"
    for k in range(1, 1001):
      last = companions.warm(lane, k)
      assert last in (None, companions.reading(lane, k - 1))
      assert last == companions.warm(lane, k)
      taken += last is not None
  assert abs(taken / 4000 - share) < 0.05 and (share < 1 or taken == 4000)  # seven deviations


def test_before_the_start_step_examples_begin_empty_and_companions_read():
  config = WarmConfig(share=1.0, start_step=7, segments=1, min_tokens=4, max_tokens=20)
  companions = Companions(config, 4, 0)
  assert [companions.warm(0, k) is None for k in range(10)] == [True] * 7 + [False] * 3
  assert companions.warm(0, 7) == companions.reading(0, 6)


@settings(deadline=None)
@given(length=st.floats(0.01, 3e4), growth=st.floats(1.0, 8.0))
def test_a_text_counts_for_its_planned_length(length, growth):
  times = np.array(counts(length, growth))
  assert times[0] == 1 and times.min() >= 1, (
    "every piece is read, and the first is not counted more"
  )
  assert times.sum() == 1 or abs(times.sum() - length) <= 0.5 + 1e-6
  before = np.cumsum(times)[:-1]
  assert (times[1:] <= np.maximum(1, before * (growth - 1)) * (1 + 1e-6)).all()
  if growth == 1:
    assert len(times) == max(1, round(length))
  else:
    assert len(times) <= 3 + 1 / (growth - 1) + max(0, np.log(length) / np.log(growth))


def test_growth_changes_how_much_is_read_and_not_how_long_texts_count():
  make = lambda growth: Companions(
    WarmConfig(share=1.0, segments=1, min_tokens=100, max_tokens=100_000, growth=growth), 16, 5
  )
  plain, grown = make(1.0), make(1.5)
  for stream in range(PLANNED - 3, PLANNED + 3):
    k = sum(grown.planned(1, s) // 16 for s in range(stream))
    times = [grown.times(1, grown.reading(1, k + i)) for i in range(grown.planned(1, stream) // 16)]
    assert grown.reading(1, k) == (stream, 0)
    assert abs(sum(times) * 16 - plain.planned(1, stream)) <= 16
    assert grown.planned(1, stream) < max(1000, plain.planned(1, stream) / 4)
