import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops.rotary import frequencies, rotate
from tests.models import reference
from tests.tiny import array

B, T, H, E, THETA = 2, 7, 3, 8, 100.0


def rotated_at(x, position):
  return np.asarray(jax.jit(rotate, static_argnums=2)(array(x), array(position), THETA))


def draw(rng):
  return rng.standard_normal((B, T, H, E)).astype(np.float32)


def test_each_pair_is_rotated_as_a_complex_number(rng):
  x, position = draw(rng), rng.integers(0, 500, (B, T)).astype(np.int32)
  frequency = THETA ** (-np.arange(E // 2) / (E // 2))
  pairs = x[..., : E // 2].astype(np.complex128) + 1j * x[..., E // 2 :]
  pairs = pairs * np.exp(1j * position[:, :, None, None] * frequency)
  expected = np.concatenate([pairs.real, pairs.imag], -1)
  np.testing.assert_allclose(rotated_at(x, position), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
  "scaling", [(), (4.0,), (8.0, 1.0, 4.0, 8192.0), (8.0, 1.0, 32.0, 8192.0, 1.2)], ids=str
)
def test_scaled_frequencies_equal_the_published_cases(scaling):
  """With Llama 3.1's head size and base, all three cases of its scaling and of YaRN's occur."""
  E, theta = 128, 500_000.0
  got = frequencies(E, theta, scaling)
  expected = reference.frequencies(E, theta, scaling)
  np.testing.assert_allclose(got.frequency_E, expected, rtol=1e-5)
  assert got.magnitude == (1.2 if len(scaling) == 5 else 1.0)
  if len(scaling) >= 4:
    ratio = expected / reference.frequencies(E, theta, ())
    assert (ratio == 1).any() and (ratio == 1 / 8).any() and len(set(ratio)) > 4


def test_a_magnitude_multiplies_the_rotated_vectors(rng):
  x, position = array(draw(rng)), jnp.arange(T, dtype=jnp.int32)[None]
  rope = frequencies(E, THETA)
  got = rotate(x, position, rope._replace(magnitude=1.5))
  np.testing.assert_allclose(got, 1.5 * rotate(x, position, rope), rtol=1e-5, atol=1e-6)


def test_frequencies_are_taken_for_theta(rng):
  x, position = array(draw(rng)), jnp.arange(T, dtype=jnp.int32)[None]
  got = rotate(x, position, frequencies(E, THETA))
  np.testing.assert_allclose(got, rotate(x, position, THETA), rtol=1e-6, atol=1e-6)


def test_only_differences_of_positions_matter(rng):
  q, k = draw(rng), draw(rng)
  position = np.arange(T, dtype=np.int32)[None]
  score = lambda shift: np.einsum(
    "BTHE,BCHE->BHTC", rotated_at(q, position + shift), rotated_at(k, position + shift)
  )
  np.testing.assert_allclose(score(0), score(37), rtol=1e-4, atol=1e-4)


def test_lengths_and_position_zero_are_kept(rng):
  x = draw(rng)
  position = np.arange(T, dtype=np.int32)[None]
  rotated = rotated_at(x, position)
  np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
  np.testing.assert_allclose(
    np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )


def test_bfloat16_keeps_its_type_and_float32_angles(rng):
  x = array(draw(rng), jnp.bfloat16)
  position = jnp.full((1, T), 1001, jnp.int32)  # bfloat16 cannot represent 1001
  got = rotate(x, position, THETA)
  assert got.dtype == jnp.bfloat16
  exact = rotated_at(np.asarray(x, np.float32), np.asarray(position))
  np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)
