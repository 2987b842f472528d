"""Fast-forwarding a memory, compared with reading a text several times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import MemoryState, Rule
from infini_jax.ops.memory import commit, fast_forward, summarize
from tests.tiny import array

B, N, K, E, U = 3, 6, 2, 4, 5


def read_text(memory, k, v, rule, times=1):
  """The memory after a text of one segment was read `times` times."""
  for _ in range(times):
    memory = commit(memory, summarize(k, v, memory, None, rule), rule)
  return memory


@pytest.fixture
def start(rng):
  """A memory of 60 tokens, and the keys and values of a segment."""
  draw = lambda n, size: array(rng.standard_normal((B, n, K, size)), jnp.float32)
  empty = MemoryState(jnp.zeros((B, K, E, U)), jnp.zeros((B, K, E)))
  return read_text(empty, draw(60, E), draw(60, U), Rule()), draw(N, E), draw(N, U)


@pytest.mark.parametrize("rule", [Rule(), Rule(normalize_keys=True)], ids=["plain", "normalized"])
def test_a_fast_forwarded_linear_memory_equals_reading_the_text_that_often(start, rule):
  memory, k, v = start
  times, rounding = (1, 7, 40), 2.0**-24
  once = read_text(memory, k, v, rule)
  got = fast_forward(memory, once, jnp.array(times, jnp.float32))
  for lane, often in enumerate(times):
    expected = read_text(memory, k, v, rule, often)
    # Each of `often` sums is rounded, and a difference has `often` times that. Signs are mixed.
    summed = read_text(jax.tree.map(jnp.abs, memory), k, jnp.abs(v), rule, often)
    for a, b, size in zip(got, expected, summed, strict=True):
      limit = 3 * (often + N) * rounding * size[lane]
      assert (jnp.abs(a[lane] - b[lane]) <= limit).all(), f"{often} times: another sum"
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), got, once)


def test_a_fast_forwarded_delta_memory_is_near_if_the_text_is_short(start):
  """The error is of second order: half the text gives a quarter of the error. z is exact."""
  memory, k, v = start
  errors = []
  for scale in (0.25, 0.5, 1.0):
    big = jax.tree.map(lambda x: x * (8 / scale), memory)  # noqa: B023
    once, often = (read_text(big, k, v, Rule("delta"), times) for times in (1, 8))
    got = fast_forward(big, once, jnp.full(B, 8.0))
    np.testing.assert_allclose(got.z_BKE, often.z_BKE, rtol=2e-5)
    errors.append(float(jnp.abs(got.M_BKEU - often.M_BKEU).max()))
  assert errors[0] < 0.7 * errors[1] < 0.7**2 * errors[2]
