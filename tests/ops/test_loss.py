import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops.loss import cross_entropy, divergence, weighted_loss
from tests.tiny import array

B, T, D, V = 2, 10, 6, 17


def inputs(rng):
  hidden, head = rng.standard_normal((B, T, D)), rng.standard_normal((V, D))
  return hidden, head, rng.integers(0, V, (B, T)).astype(np.int32)


def plain(hidden, head, targets, softcap=0.0):
  logits = hidden @ head.T
  logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
  log_z = jax.scipy.special.logsumexp(logits, axis=-1)
  return log_z - jnp.take_along_axis(logits, targets[..., None], 2)[..., 0], log_z


def right(hidden, head, targets):
  return np.argmax(hidden @ head.T, axis=-1) == targets


@pytest.mark.parametrize(
  "chunk,softcap",
  [
    *[(3, 1.5), (9, 0.0), (1024, 0.0)],
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0.0), (5, 0.0), (10, 1.5)]),
  ],
)
def test_equals_float64_forward_and_gradient_whatever_the_chunk(rng, chunk, softcap):
  hidden, head, targets = inputs(rng)
  weights = rng.standard_normal((2, B, T))

  def graded(f, dtype):
    def loss(hidden, head):
      outs = f(hidden, head, array(targets))
      return sum((o * w.astype(dtype)).sum() for o, w in zip(outs[:2], weights, strict=True)), outs

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

  with jax.enable_x64(True):
    exact = lambda *arrays: plain(*arrays, softcap)
    expected = jax.device_get(graded(exact, np.float64)(hidden, head))
  ours = lambda *arrays: cross_entropy(*arrays, chunk=chunk, softcap=softcap)
  got = graded(ours, np.float32)(hidden.astype(np.float32), head.astype(np.float32))
  (_, outs), grads = got
  (_, expected_outs), expected_grads = expected
  for name, a, b in zip(("nll", "log_z"), outs[:2], expected_outs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
  np.testing.assert_array_equal(outs[2], right(hidden, head, targets))
  for name, a, b in zip(("hidden", "head"), grads, expected_grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("chunk,softcap", [(3, 1.5), (10, 0.0)])
def test_the_weighted_loss_has_the_gradient_of_cross_entropy(rng, chunk, softcap):
  hidden, head, targets = inputs(rng)
  weights = rng.standard_normal((B, T))

  def expected(hidden, head):
    nll, log_z = plain(hidden, head, array(targets), softcap)
    return 3 * (weights * (nll + 0.1 * log_z**2)).sum(), nll

  def ours(hidden, head):
    how = {"chunk": chunk, "softcap": softcap, "z_loss": 0.1}
    weight = array(weights, jnp.float32)
    loss, (nll, right) = weighted_loss(hidden, head, array(targets), weight, **how)
    assert right.dtype == bool
    return 3 * loss, nll

  with jax.enable_x64(True):
    reference = jax.jit(jax.value_and_grad(expected, (0, 1), has_aux=True))(hidden, head)
    (loss, nll), grads = jax.device_get(reference)
  arrays = array(hidden, jnp.float32), array(head, jnp.float32)
  (got, outs), got_grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(*arrays)
  np.testing.assert_allclose(got, loss, rtol=1e-5)
  np.testing.assert_allclose(ours(*arrays)[0], loss, rtol=1e-5, err_msg="without a gradient")
  np.testing.assert_allclose(outs, nll, rtol=1e-5, atol=1e-5)
  for name, a, b in zip(("hidden", "head"), got_grads, grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("frozen", [False, True])
def test_the_weighted_loss_computes_the_logits_once(rng, frozen):
  """Products with the head: logits, the gradient of the hidden states, and that of the head."""
  shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((1, 64, 4), (32, 4))]
  targets, weights = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64))
  loss = lambda *x: weighted_loss(*x, targets, weights, chunk=16)[0]
  program = jax.make_jaxpr(jax.grad(loss, (0,) if frozen else (0, 1)))(*shapes)
  products = str(program).count("dot_general")
  assert products == 3 - frozen, f"{products} products: are the logits computed again?"


@pytest.mark.parametrize("chunk", [3, 10])
def test_right_is_where_greedy_decoding_would_write_the_target(rng, chunk):
  hidden, head, targets = inputs(rng)
  best = np.argmax(hidden @ head.T, axis=-1)
  chosen = rng.random((B, T)) < 0.5
  targets = np.where(chosen, best, (best + 1 + targets % (V - 1)) % V).astype(np.int32)
  hidden, head = array(hidden, jnp.float32), array(head, jnp.float32)
  _, _, got = cross_entropy(hidden, head, array(targets), chunk=chunk)
  assert got.dtype == bool
  np.testing.assert_array_equal(got, chosen)


def test_large_logits_stay_finite_and_bfloat16_is_summed_in_float32(rng):
  hidden, head, targets = inputs(rng)
  nll, log_z, _ = cross_entropy(
    array(hidden * 1e3, jnp.bfloat16),
    array(head, jnp.float32),
    array(targets),
    chunk=4,
  )
  assert nll.dtype == log_z.dtype == jnp.float32
  assert np.isfinite(nll).all() and (np.asarray(nll) >= 0).all()


def test_no_more_than_a_chunk_of_logits_exists(rng):
  """Forward and backward, no array of the program is as large as all logits."""
  T, V = 256, 512
  shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((1, T, 4), (V, 4))]
  targets = jnp.zeros((1, T), jnp.int32)
  loss = lambda hidden, head: cross_entropy(hidden, head, targets, chunk=16)[0].sum()
  program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes)

  text = str(program)
  assert f"[1,{T},{V}]" not in text and f"{T // 16},1,16,{V}]" not in text, (
    "the logits of all tokens are kept for the gradient: is the block still checkpointed?"
  )


def test_divergence_equals_float64_and_teaches_the_model_alone(rng, chunk=3, softcap=2.0):
  hidden, head, targets = inputs(rng)
  told, told_head, _ = inputs(rng)
  weights = rng.standard_normal((B, T))

  def apart(hidden, head, told, told_head):
    capped = lambda x: softcap * jnp.tanh(x / softcap)
    log_p = jax.nn.log_softmax(capped(hidden @ head.T))
    log_t = jax.nn.log_softmax(capped(told @ told_head.T))
    return (jnp.exp(log_t) * (log_t - log_p)).sum(-1)

  def ours(hidden, head, told, told_head):
    how = {"chunk": chunk, "softcap": softcap}
    outs = divergence(hidden, head, array(targets), told, told_head, **how)
    same = cross_entropy(hidden, head, array(targets), **how)
    return outs[3], all((a == b).all() for a, b in zip(outs[:3], same, strict=True))

  arrays = (hidden, head, told, told_head)
  with jax.enable_x64(True):
    loss = lambda *arrays: (apart(*arrays) * weights).sum()
    expected = apart(*arrays), jax.grad(loss, (0, 1))(*arrays)
    expected = jax.device_get(expected)
  arrays = [array(x, jnp.float32) for x in arrays]
  got, same = ours(*arrays)
  assert same, "cross-entropy is another one beside a teacher"
  loss = lambda *arrays: (ours(*arrays)[0] * weights.astype(np.float32)).sum()
  gradients = jax.grad(loss, (0, 1, 2, 3))(*arrays)
  np.testing.assert_allclose(got, expected[0], rtol=1e-4, atol=1e-5)
  for a, b in zip(gradients[:2], expected[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert not np.any(gradients[2]) and not np.any(gradients[3]), "the teacher learns"
  np.testing.assert_allclose(
    divergence(*arrays[:2], array(targets), *arrays[:2], chunk=3)[3], 0, atol=1e-6
  )
