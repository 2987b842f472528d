"""Kernels equal the reference, and give the reason if they cannot run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import kernels
from infini_jax.ops.attention import Scoring, segment_attention
from tests.tiny import array


@pytest.mark.parametrize(
  "masked,scoring", [(False, Scoring()), (True, Scoring(scale=0.2, softcap=1.5))]
)
def test_splash_equals_the_reference_forward_and_gradient(rng, masked, scoring):
  """In the interpret mode of Pallas; compiled on a TPU."""
  B, N, H, K, E = 2, 256, 4, 2, 128
  q, k, v, weight = (
    array(rng.standard_normal((B, N, heads, E)), jnp.float32) for heads in (H, K, K, H)
  )
  lengths = rng.integers(1, N, (B, 1)) if masked else np.full((B, 1), N)
  mask = array(np.arange(N)[None] < lengths)
  weight = jnp.where(mask[..., None, None], weight, 0.0)

  def graded(run):
    return jax.jit(jax.value_and_grad(lambda *qkv: (run(*qkv) * weight).sum(), (0, 1, 2)))(q, k, v)

  with jax.numpy_dtype_promotion("standard"):  # splash's code mixes types
    how = scoring.scale_of(E), scoring.softcap
    ours = graded(lambda *qkv: kernels.splash(*qkv, *how, interpret=True))
  alone = lambda *qkv: segment_attention(
    *(x[:, None] for x in qkv), mask[:, None], kernel="reference", scoring=scoring
  )[:, 0]
  expected = graded(alone)
  np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4, atol=1e-3)
  for name, a, b in zip("qkv", ours[1], expected[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"gradient of {name}")


@pytest.mark.parametrize(
  "kernel,on,shape,reason",
  [
    ("splash", "cpu", (256, 128, 128), "needs a TPU, and this is a CPU"),
    ("splash", "tpu", (200, 128, 128), "200 tokens of a segment"),
    ("splash", "tpu", (256, 64, 64), "head sizes 64 and 64"),
    ("splash", "tpu", (256, 128, 128), None),
    ("cudnn", "tpu", (256, 64, 64), "needs an NVIDIA GPU, and this is a TPU"),
    ("cudnn", "gpu", (256, 60, 60), "heads of 60"),
    ("cudnn", "gpu", (256, 64, 64), None),
  ],
)
def test_a_kernel_says_why_it_cannot(kernel, on, shape, reason):
  got = kernels.why_not(kernel, on, *shape, jnp.dtype(jnp.bfloat16))
  assert got is None if reason is None else reason in got
  if on == "gpu" and reason is None:
    assert "bfloat16" in kernels.why_not(kernel, on, *shape, jnp.dtype(jnp.float32))
  if reason is None:
    capped = kernels.why_not(kernel, on, *shape, jnp.dtype(jnp.bfloat16), 50.0)
    assert capped is None if kernel == "splash" else "attention_softcap is 50.0" in capped
    chosen = kernels.choose("auto", on, *shape, jnp.dtype(jnp.bfloat16), 50.0)
    assert chosen == ("splash" if kernel == "splash" else "xla")


def test_auto_takes_an_available_kernel_and_an_impossible_one_is_refused(rng):
  qkv = [jnp.zeros((1, 2, 8, 2, 4)) for _ in range(3)]
  np.testing.assert_array_equal(segment_attention(*qkv), segment_attention(*qkv, kernel="xla"))
  for kernel, message in (
    ("splash", "attention='splash': it needs a TPU, .*choose 'auto' or 'xla'"),
    ("cudnn", "attention='cudnn': it needs an NVIDIA GPU"),
    ("flash", "attention='flash': choose 'auto', 'reference'"),
  ):
    with pytest.raises(ValueError, match=message):
      segment_attention(*qkv, kernel=kernel)


def test_the_platform_is_that_of_the_mesh():
  assert kernels.platform() == "cpu"
  with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
    assert kernels.platform() == "cpu"
