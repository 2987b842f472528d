"""`infini_attention` against the float64 loops, forward and gradient, and its exact properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import MemoryState, infini_attention
from infini_jax.ops import infini as infini_module
from infini_jax.ops.attention import SegmentCache
from tests.ops import reference

B, K, G, E, U = 2, 2, 2, 4, 6
H = K * G

# Jitted, for op by op every operation would be compiled alone.
attend = jax.jit(
  infini_attention,
  static_argnames=(
    "segment_length", "rule", "rope_theta", "scale_first_segment", "implementation"
  ),
)  # fmt: skip
extend = jax.jit(infini_module.extend_stream, static_argnames=("rule", "rope_theta"))


def inputs(rng, T):
  f = lambda *shape: rng.standard_normal(shape)
  return f(B, T, H, E), f(B, T, K, E), f(B, T, K, U), f(H)


def memory(rng):
  """A memory that has read 16 tokens."""
  k = np.asarray(reference.sigma(rng.standard_normal((B, 16, K, E))), np.float64)
  v = rng.standard_normal((B, 16, K, U))
  return np.einsum("BTKE,BTKU->BKEU", k, v), k.sum(1)


def single(*arrays):
  return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def run(arrays, *, implementation="parallel", **options):
  q, k, v, beta, M, z = single(*arrays)
  out, state = attend(q, k, v, beta, MemoryState(M, z), implementation=implementation, **options)
  return out, state.M_BKEU, state.z_BKE


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("rope_theta,literal", [(None, True), (100.0, False)])
def test_equals_float64_loops_forward_and_gradient(rng, rule, rope_theta, literal):
  T, N = 14, 4  # three whole segments and a short one
  S = -(-T // N)
  arrays = (*inputs(rng, T), *memory(rng))
  reset = rng.random((B, S)) < 0.3
  mask = rng.random((B, T)) < 0.8
  mask[:, ::N] = True  # each query then sees a key
  options = dict(segment_length=N, rule=rule, rope_theta=rope_theta, scale_first_segment=literal)
  weights = [rng.standard_normal(s) for s in ((B, T, H, U), (B, K, E, U), (B, K, E))]

  def graded(f, dtype):
    def loss(arrays):
      outs = f(arrays)
      outs = (outs[0] * mask[..., None, None].astype(dtype), *outs[1:])
      return sum((o * w.astype(dtype)).sum() for o, w in zip(outs, weights, strict=True)), outs

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  with jax.enable_x64(True):
    plain = lambda arrays: reference.infini_attention(*arrays, reset=reset, mask=mask, **options)
    (_, expected), expected_grads = graded(plain, np.float64)(arrays)
    expected, expected_grads = jax.tree.map(np.asarray, (expected, expected_grads))
  flags = dict(reset_BS=jnp.asarray(reset), mask_BT=jnp.asarray(mask))
  for form in ("scan", "parallel"):
    ours = lambda arrays, form=form: run(arrays, implementation=form, **flags, **options)
    (_, got), grads = graded(ours, np.float32)(single(*arrays))
    for name, a, b in zip(("out", "M", "z"), got, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{form}: {name}")
    for name, a, b in zip("q k v beta M z".split(), grads, expected_grads, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"{form}: gradient of {name}")


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_one_call_equals_two_calls_with_the_state_carried(rng, rule):
  arrays = (*inputs(rng, 16), *memory(rng))
  options = dict(segment_length=4, rule=rule, rope_theta=50.0)
  whole, M, z = run(arrays, **options)
  q, k, v, beta, M0, z0 = arrays
  first, *state = run((q[:, :8], k[:, :8], v[:, :8], beta, M0, z0), **options)
  second, *state = run((q[:, 8:], k[:, 8:], v[:, 8:], beta, *state), **options)
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(state[0], M, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("pieces", [[1] * 14, [3, 1, 4, 2, 2, 2]])
def test_token_by_token_equals_whole_segments(rng, rule, pieces):
  N, T = 4, 14
  q, k, v, beta, M, z = single(*inputs(rng, T), *memory(rng))
  whole, _ = attend(q, k, v, beta, MemoryState(M, z), segment_length=N, rule=rule, rope_theta=50.0)
  empty = SegmentCache(jnp.zeros((B, N, K, E)), jnp.zeros((B, N, K, U)), jnp.zeros(B, jnp.int32))
  stream = infini_module.open_stream(MemoryState(M, z), empty, rule)
  outs, start = [], 0
  for piece in pieces:
    part = slice(start, start + piece)
    out, stream = extend(
      q[:, part], k[:, part], v[:, part], beta, stream, jnp.ones((B, piece), bool),
      rule=rule, rope_theta=50.0,
    )  # fmt: skip
    outs.append(out)
    start += piece
  np.testing.assert_allclose(jnp.concatenate(outs, 1), whole, rtol=1e-5, atol=1e-5)


def test_shut_gate_is_local_attention_and_open_gate_is_memory(rng):
  q, k, v, _, M, z = single(*inputs(rng, 12), *memory(rng))
  options = dict(segment_length=4, rule="linear")
  shut, _ = attend(q, k, v, jnp.full(H, -200.0), MemoryState(M, z), **options)
  for s in range(3):
    part = slice(4 * s, 4 * s + 4)
    alone, _ = attend(q[:, part], k[:, part], v[:, part], jnp.zeros(H), **options)
    np.testing.assert_array_equal(shut[:, part], alone)
  opened, _ = attend(q, k, v, jnp.full(H, 200.0), MemoryState(M, z), **options)
  sq = reference.sigma(q[:, :4])
  Mh, zh = jnp.repeat(M, G, 1), jnp.repeat(z, G, 1)
  memory_only = (
    jnp.einsum("BTHE,BHEU->BTHU", sq, Mh) / jnp.einsum("BTHE,BHE->BTH", sq, zh)[..., None]
  )
  np.testing.assert_allclose(opened[:, :4], memory_only, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["scan", "parallel"])
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_no_output_depends_on_a_later_token(rng, implementation, rule):
  q, k, v, beta, M, z = single(*inputs(rng, 12), *memory(rng))

  def at(t, k, v):
    out, _ = attend(
      q, k, v, beta, MemoryState(M, z), segment_length=4, rule=rule, implementation=implementation
    )
    return out[:, t].sum()

  gradient = jax.jit(jax.grad(at, (1, 2)))
  for t in (2, 3, 4, 9):
    by_k, by_v = map(np.asarray, gradient(t, k, v))
    assert not np.any(by_k[:, t + 1 :]), f"the output at token {t} sees a later key"
    assert not np.any(by_v[:, t + 1 :]), f"the output at token {t} sees a later value"
    assert np.all(np.any(by_v[:, : t + 1], axis=(2, 3))), f"token {t} does not see all its past"


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_reset_equals_a_document_alone_and_stops_the_gradient(rng, rule):
  q, k, v, beta, M, z = single(*inputs(rng, 16), *memory(rng))
  options = dict(segment_length=4, rule=rule, rope_theta=50.0)
  reset = jnp.zeros((B, 4), bool).at[:, 2].set(True)

  def second(k_first):
    keys = jnp.concatenate([k_first, k[:, 8:]], 1)
    return attend(q, keys, v, beta, MemoryState(M, z), reset_BS=reset, **options)[0][:, 8:]

  alone, _ = attend(q[:, 8:], k[:, 8:], v[:, 8:], beta, **options)
  np.testing.assert_allclose(second(k[:, :8]), alone, rtol=1e-5, atol=1e-6)
  assert not np.any(jax.jit(jax.grad(lambda x: second(x).sum()))(k[:, :8])), (
    "gradient crosses a document"
  )


def test_delta_stays_bounded_after_a_short_first_segment(rng):
  """Undamped, the first whole segment after 2 tokens multiplies the memory by more than ten."""
  N, T = 64, 64 * 6
  q, k, v, _ = single(*inputs(rng, T))
  mask = jnp.ones((B, T), bool).at[:, 2:N].set(False)
  options = dict(segment_length=N, rule="delta")
  _, short = attend(q, k, v, jnp.zeros(H), mask_BT=mask, **options)
  _, whole = attend(q, k, v, jnp.zeros(H), **options)
  ratio = jnp.abs(short.M_BKEU).max() / jnp.abs(whole.M_BKEU).max()
  assert ratio < 3, f"the memory grew {ratio:.1f} times as large: is recall damped?"


def test_bfloat16_inputs_keep_a_float32_memory(rng):
  q, k, v, beta = (jnp.asarray(a, jnp.bfloat16) for a in inputs(rng, 8))
  out, state = attend(q, k, v, beta, segment_length=4, rule="delta", rope_theta=1e4)
  assert out.dtype == jnp.bfloat16 and {a.dtype for a in state} == {jnp.dtype(jnp.float32)}


def test_masked_tokens_write_nothing_and_return_zero(rng):
  q, k, v, beta = single(*inputs(rng, 8))
  mask = jnp.ones((B, 8), bool).at[:, 4:].set(False)
  out, state = attend(q, k, v, beta, segment_length=4, mask_BT=mask)
  _, short = attend(q[:, :4], k[:, :4], v[:, :4], beta, segment_length=4)
  assert not np.any(out[:, 4:])
  np.testing.assert_array_equal(state.M_BKEU, short.M_BKEU)


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(rule="sum"), "choose 'linear' or 'delta'"),
    (dict(implementation="fast"), "choose 'auto'"),
    (dict(segment_length=0), "at least 1"),
    (dict(reset_BS=jnp.zeros((B, 7), bool)), "reset_BS has shape"),
  ],
)
def test_wrong_arguments_are_named(rng, change, message):
  q, k, v, beta = (jnp.asarray(a, jnp.float32) for a in inputs(rng, 8))
  with pytest.raises(ValueError, match=message):
    infini_attention(q, k, v, beta, **{"segment_length": 4, **change})
