"""`infini_attention`, compared with the float64 loops, and its exact properties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.ops import MemoryState, Rule, gate_values, infini_attention
from infini_jax.ops import infini as infini_module
from infini_jax.ops import memory as memory_module
from infini_jax.ops import stream as stream_module
from infini_jax.ops.attention import Segment
from tests.ops import reference
from tests.tiny import array

B, K, G, E, U = 2, 2, 2, 4, 6
H = K * G

# Jitted, because otherwise every operation is compiled separately.
attend = jax.jit(
  infini_attention,
  static_argnames=("segment_length", "rule", "rope_theta", "implementation"),
)
extend = jax.jit(stream_module.extend_stream, static_argnames=("rule", "rope_theta"))


def inputs(rng, T):
  f = lambda *shape: rng.standard_normal(shape)
  return f(B, T, H, E), f(B, T, K, E), f(B, T, K, U), f(H)


def memory(rng, tokens=16):
  """A memory of `tokens` random tokens."""
  k = np.asarray(reference.sigma(rng.standard_normal((B, tokens, K, E))), np.float64)
  v = rng.standard_normal((B, tokens, K, U))
  return np.einsum("BTKE,BTKU->BKEU", k, v), k.sum(1)


def single(*arrays):
  return tuple(array(a, jnp.float32) for a in arrays)


def more_of(arrays):
  """The write gate, and the memory's own queries, keys and values, if there are any."""
  write, own = arrays[:1], tuple(arrays[1:])
  return ({"write_BTK": write[0]} if write else {}) | ({"own": own} if own else {})


def run(arrays, *, implementation="parallel", **options):
  q, k, v, beta, M, z, *more = single(*arrays)
  options |= more_of(more)
  out, state = attend(q, k, v, beta, MemoryState(M, z), implementation=implementation, **options)
  return out, state.M_BKEU, state.z_BKE


def token_by_token(arrays, N, *, rule, **options):
  """The streaming form: outputs, and the memory after the open segment is written too."""
  q, k, v, beta, M, z, *more = arrays
  empty = Segment(jnp.zeros((B, N, K, E)), jnp.zeros((B, N, K, U)), jnp.zeros(B, jnp.int32))
  stream = stream_module.open_stream(MemoryState(M, z), empty, rule)

  def token(stream, xs):
    q, k, v, *more = (x[:, None] for x in xs)
    out, stream = stream_module.extend_stream(
      q, k, v, beta, stream, jnp.ones((B, 1), bool), rule=rule, **options, **more_of(more)
    )
    return stream, out[:, 0]

  xs = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, *more))
  stream, out = jax.lax.scan(token, stream, xs)
  return jnp.moveaxis(out, 0, 1), *memory_module.commit(stream.memory, stream.pending, rule)


EVERYTHING = dict(normalize_keys=True, z_correction=True, decay=0.7)
PLAIN = dict(rope_theta=100.0, cut=False)
GIVEN = dict(write=True, own=True)
HARD = dict(gate="hard_sigmoid", readout_norm=True)
# Fast tests have the linear rule alone, and the delta rule with all options together: also with a
# write gate, and with queries, keys and values of the memory's own.
FAST = {("linear", "plain")}
OTHER = dict(scale_first_segment=True, **HARD)
CASES = [
  pytest.param(
    Rule(name, **fields),
    {**PLAIN, **options},
    id=f"{name}-{label}",
    marks=[pytest.mark.slow] * ((name, label) not in FAST),
  )
  for name in ("linear", "delta")
  for label, fields, options in (
    ("plain", {}, {}),
    ("other", OTHER, {"rope_theta": None}),
    ("normalize_keys", {"normalize_keys": True}, {}),
    ("z_correction", {"z_correction": True}, {}),
    ("decay", {"decay": 0.7}, {}),
    ("everything", {**EVERYTHING, **HARD}, {}),
  )
] + [
  pytest.param(
    Rule("delta", **OTHER),
    {"rope_theta": None, "cut": True},
    id="cut-other",
    marks=pytest.mark.slow,
  ),
  pytest.param(Rule("linear"), {**PLAIN, "write": True}, id="linear-write", marks=pytest.mark.slow),
  pytest.param(Rule("delta"), {**PLAIN, **GIVEN}, id="delta-write-own", marks=pytest.mark.slow),
  pytest.param(Rule("delta", **EVERYTHING, **HARD), {**PLAIN, **GIVEN}, id="delta-all-write-own"),
]


NAMES = ("q", "k", "v", "beta", "M", "z", "write", "own q", "own k", "own v")


@pytest.mark.parametrize("rule,options", CASES)
def test_equals_float64_loops_forward_and_gradient(rng, rule, options):
  T, N = 10, 4  # two whole segments and a short one
  S = -(-T // N)
  # The memory is small at first: segments add much to it, and some of their keys are new.
  arrays, options = (*inputs(rng, T), *memory(rng, tokens=1)), dict(options)
  if options.pop("write", False):
    write = np.clip(rng.normal(0.5, 0.6, (B, T, K)), 0, 1)
    write[:, ::N] = rng.uniform(0.1, 1, (B, S, K))  # each segment writes at least one token
    arrays += (write,)
  if options.pop("own", False):
    q, k, v, _ = inputs(rng, T)
    arrays += (q, k, v)
  reset = rng.random((B, S)) < 0.3
  mask = rng.random((B, T)) < 0.8
  mask[:, ::N] = True  # so each query sees a key
  no_reset, no_mask = np.zeros_like(reset), np.ones_like(mask)
  weights = [rng.standard_normal(s) for s in ((B, T, H, U), (B, K, E, U), (B, K, E))]

  def graded(f, dtype):
    def loss(arrays, reset, mask, weights):
      out, *rest = f(arrays, reset, mask)
      outs = (out * mask[..., None, None].astype(dtype), *rest)
      return sum((o * w.astype(dtype)).sum() for o, w in zip(outs, weights, strict=True)), outs

    # Random arrays are arguments, so that the compiled program is found again in the next run.
    return partial(jax.jit(jax.value_and_grad(loss, has_aux=True)), weights=weights)

  def loops(arrays, reset, mask):
    return reference.infini_attention(
      *arrays, reset=reset, mask=mask, segment_length=N, rule=rule, **options
    )

  with jax.enable_x64(True):
    loops = graded(loops, np.float64)
    flagged = jax.tree.map(np.asarray, loops(arrays, reset, mask))
    unflagged = jax.tree.map(np.asarray, loops(arrays, no_reset, no_mask))

  cut = array(options["cut"]) if options["cut"] else None
  ours = {**options, "cut": cut, "rule": rule}

  def whole(form):
    return lambda arrays, reset, mask: run(
      arrays, segment_length=N, reset_BS=reset, mask_BT=mask, implementation=form, **ours
    )

  rounds = ["scan", "parallel"]
  if infini_module.no_kernels("cpu", N, E, U, rule) is None:
    rounds.append("kernels")
  calls = [(form, whole(form), (reset, mask), flagged) for form in rounds] + [
    ("stream", lambda arrays, _, mask: token_by_token(arrays, N, **ours), (no_reset, no_mask),
     unflagged),
  ]  # fmt: skip
  for form, f, flags, ((_, expected), expected_grads) in calls:
    (_, got), grads = graded(f, np.float32)(single(*arrays), *map(jnp.asarray, flags))
    for name, a, b in zip(("out", "M", "z"), got, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{form}: {name}")
    for name, a, b in zip(NAMES, grads, expected_grads, strict=False):
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


@pytest.mark.parametrize(
  "pieces,rule",
  [
    pytest.param(pieces, rule, marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, pieces in enumerate([[3, 1, 1, 3, 3, 1, 1, 1], [1] * 14])
    for j, rule in enumerate(["linear", "delta", Rule("delta", **EVERYTHING)])
  ],
)
def test_token_by_token_equals_whole_segments(rng, rule, pieces):
  N, T = 4, 14
  q, k, v, beta, M, z = single(*inputs(rng, T), *memory(rng))
  whole, _ = attend(q, k, v, beta, MemoryState(M, z), segment_length=N, rule=rule, rope_theta=50.0)
  empty = Segment(jnp.zeros((B, N, K, E)), jnp.zeros((B, N, K, U)), jnp.zeros(B, jnp.int32))
  stream = stream_module.open_stream(MemoryState(M, z), empty, rule)
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


@pytest.mark.parametrize(
  "implementation,rule",
  [
    pytest.param(form, rule, marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, rule in enumerate(("delta", "linear"))
    for j, form in enumerate(("scan", "parallel", "kernels"))
  ],
)
def test_no_output_depends_on_a_later_token(rng, implementation, rule):
  q, k, v, beta, M, z = single(*inputs(rng, 12), *memory(rng))

  def at(t, k, v, q, beta, state):
    options = dict(segment_length=4, rule=rule, implementation=implementation)
    return attend(q, k, v, beta, state, **options)[0][:, t].sum()

  gradient = jax.jit(jax.grad(at, (1, 2)))
  for t in (2, 3, 4, 9):
    by_k, by_v = map(np.asarray, gradient(t, k, v, q, beta, MemoryState(M, z)))
    assert not np.any(by_k[:, t + 1 :]), f"the output at token {t} sees a later key"
    assert not np.any(by_v[:, t + 1 :]), f"the output at token {t} sees a later value"
    assert np.all(np.any(by_v[:, : t + 1], axis=(2, 3))), f"token {t} does not see all its past"


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_reset_equals_a_document_alone_and_stops_the_gradient(rng, rule):
  q, k, v, beta, M, z = single(*inputs(rng, 16), *memory(rng))
  options = dict(segment_length=4, rule=rule, rope_theta=50.0)
  reset = jnp.zeros((B, 4), bool).at[:, 2].set(True)

  def second(k_first, k_second, q, v, beta, state):
    keys = jnp.concatenate([k_first, k_second], 1)
    out = attend(q, keys, v, beta, state, reset_BS=reset, **options)[0][:, 8:]
    return out.sum(), out

  alone, _ = attend(q[:, 8:], k[:, 8:], v[:, 8:], beta, **options)
  graded = jax.jit(jax.value_and_grad(second, has_aux=True))
  (_, out), grad = graded(k[:, :8], k[:, 8:], q, v, beta, MemoryState(M, z))
  np.testing.assert_allclose(out, alone, rtol=1e-5, atol=1e-6)
  assert not np.any(grad), "gradient crosses a document"


def test_delta_stays_bounded_after_a_short_first_segment(rng):
  """Without damping, the first whole segment after 2 tokens makes the memory ten times larger."""
  N, T = 64, 64 * 6
  q, k, v, _ = single(*inputs(rng, T))
  mask = jnp.ones((B, T), bool).at[:, 2:N].set(False)
  options = dict(segment_length=N, rule="delta")
  _, short = attend(q, k, v, jnp.zeros(H), mask_BT=mask, **options)
  _, whole = attend(q, k, v, jnp.zeros(H), **options)
  ratio = jnp.abs(short.M_BKEU).max() / jnp.abs(whole.M_BKEU).max()
  assert ratio < 3, f"the memory grew {ratio:.1f} times as large: is recall damped?"


def test_delta_never_expands_a_memory_whose_z_stays_small(rng):
  """With z-correction, z stays as small as after a short first segment; see `_damping`."""
  N, S = 32, 12
  _, k, v, _ = single(*inputs(rng, N * S))
  k, v = k + rng.standard_normal((1, 1, 1, E)).astype(np.float32), v.at[:, N:].set(0.0)
  mask = jnp.ones((B, N * S), bool).at[:, 1:N].set(False)
  split = lambda x: x.reshape(B, S, N, *x.shape[2:])
  before, _ = jax.jit(memory_module.prefix, static_argnums=5)(
    split(k), split(v), memory_module.empty_memory(k, v), jnp.zeros((B, S), bool), split(mask),
    Rule("delta", z_correction=True),
  )  # fmt: skip
  norms = jnp.linalg.norm(before.M_BKEU[:, 1:], axis=(-2, -1))  # only the first segment writes
  assert np.all(norms[:, 1:] <= norms[:, :-1] * (1 + 1e-5)), "delta makes old memories larger"


@pytest.mark.parametrize("implementation", ["scan", "parallel", "kernels"])
def test_a_segment_of_padding_does_not_decay(rng, implementation):
  arrays = inputs(rng, 12), memory(rng)
  mask = jnp.zeros((B, 12), bool)
  options = dict(segment_length=4, mask_BT=mask, implementation=implementation)
  for rule in (Rule("linear", decay=0.5), Rule("delta", decay=0.5)):
    _, *after = run((*arrays[0], *arrays[1]), rule=rule, **options)
    for a, b in zip(after, single(*arrays[1]), strict=True):
      np.testing.assert_array_equal(a, b, err_msg="padding is no compression: nothing may change")


def test_each_normalized_key_weighs_one(rng):
  q, k, v, beta = single(*inputs(rng, 14))
  mask = array(rng.random((B, 14)) < 0.7)
  _, state = attend(
    q, k, v, beta, segment_length=4, mask_BT=mask, rule=Rule("delta", normalize_keys=True)
  )
  tokens = np.broadcast_to(np.asarray(mask).sum(1)[:, None], (B, K))
  np.testing.assert_allclose(state.z_BKE.sum(-1), tokens, rtol=1e-5)


def test_z_correction_adds_a_key_once(rng):
  """Keys along the axes: a key written twice is in z once; a new key is added completely."""
  q, _, v, beta = single(*inputs(rng, 4))
  axis = lambda t: jnp.full((B, K, E), -30.0).at[:, :, t].set(1 + array(rng.random()))
  first, second = axis(0), axis(1)
  k = jnp.stack([first, first, second, second], 1)
  _, state = attend(q, k, v, beta, segment_length=1, rule=Rule("linear", z_correction=True))
  once = reference.sigma(first) + reference.sigma(second)
  np.testing.assert_allclose(state.z_BKE, once, rtol=1e-5, atol=1e-6)
  _, plain = attend(q, k, v, beta, segment_length=1)
  np.testing.assert_allclose(plain.z_BKE, 2 * once, rtol=1e-5, atol=1e-6)


def test_gate_values():
  beta = array([-200, -3, -1.5, 0, 3, 200], jnp.bfloat16)
  assert gate_values(beta).dtype == jnp.float32
  np.testing.assert_allclose(gate_values(beta)[array([0, 3, 5])], [0, 0.5, 1])
  np.testing.assert_allclose(
    gate_values(beta, "hard_sigmoid"), [0, 0, 0.25, 0.5, 1, 1], rtol=1e-6, atol=1e-7
  )


@pytest.mark.parametrize("implementation", ["scan", "parallel", "kernels"])
def test_cut_scales_local_attention_and_writes_as_ever(rng, implementation):
  arrays = (*inputs(rng, 12), *memory(rng))
  options = dict(segment_length=4, rule="delta", implementation=implementation)
  out, *state = run(arrays, **options)
  for a, b in zip((out, *state), run(arrays, cut=jnp.array(False), **options), strict=True):
    np.testing.assert_array_equal(a, b)
  cut, *cut_state = run(arrays, cut=jnp.array(True), **options)
  for a, b in zip(state, cut_state, strict=True):
    np.testing.assert_array_equal(a, b, err_msg="a cut read changes what is written")
  q, k, v, beta = single(*arrays[:4])
  every = jnp.ones((B, 3), bool)
  local, _ = attend(q, k, v, beta, reset_BS=every, **options)
  scaled = (1 - gate_values(beta))[None, None, :, None] * local
  np.testing.assert_allclose(cut, scaled, rtol=1e-5, atol=1e-6)
  empty, _ = attend(q, k, v, beta, reset_BS=every, cut=jnp.array(True), **options)
  np.testing.assert_array_equal(empty, local, err_msg="an empty memory has nothing to cut")


def test_readout_norm_of_an_empty_memory_is_zero_with_a_gradient(rng):
  q, k, v, beta = single(*inputs(rng, 8))
  state = MemoryState(jnp.zeros((B, K, E, U)), jnp.zeros((B, K, E)))

  def loss(q, k, v, beta, state, norm):
    rule = Rule(scale_first_segment=True, readout_norm=norm)
    out, after = attend(q, k, v, beta, state, segment_length=4, rule=rule)
    return out[:, :4].sum() + after.M_BKEU.sum()

  graded = jax.jit(jax.value_and_grad(loss, argnums=range(5)), static_argnums=5)
  plain, normed = graded(q, k, v, beta, state, False), graded(q, k, v, beta, state, True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, normed)


def test_bfloat16_inputs_keep_a_float32_memory(rng):
  q, k, v, beta = (array(a, jnp.bfloat16) for a in inputs(rng, 8))
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
    (dict(rule=Rule("delta", decay=0.0)), "must be above 0"),
    (dict(rule=Rule(gate="relu")), "choose 'sigmoid' or 'hard_sigmoid'"),
    (dict(implementation="fast"), "choose 'auto'"),
    (dict(implementation="kernels", rule=Rule(z_correction=True)), "memory.z_correction has plain"),
    (dict(segment_length=0), "at least 1"),
    (dict(reset_BS=jnp.zeros((B, 7), bool)), "reset_BS has shape"),
  ],
)
def test_wrong_arguments_are_named(rng, change, message):
  q, k, v, beta = (array(a, jnp.float32) for a in inputs(rng, 8))
  with pytest.raises(ValueError, match=message):
    infini_attention(q, k, v, beta, **{"segment_length": 4, **change})
