"""RMT and AutoCompressors, compared with a decoder in float64 that reads segment by segment."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.models import bind
from infini_jax.models.mixers.prefixed import BACK
from infini_jax.models.mixers.summaries import random_borders
from tests.ops.reference import rotate
from tests.tiny import array, fake_params, model_config

B, S, N, P, M = 2, 5, 4, 3, 2
T, V, LAYERS, HEADS, E = S * N, 32, 2, 2, 8


def config(mixer, **fields):
  return model_config(
    mixer=mixer, segment_length=N, summary_tokens=P, summary_steps=M, layers=LAYERS, **fields
  )


def norm(x, scale):
  return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale[None]


@partial(jax.jit, static_argnames="real")  # traced once for all segments
def decoder(p, x, real):
  """All layers over one sequence x (T,D), causal, without attention to padding."""
  seen = np.tri(len(x), dtype=bool) & np.asarray(real)[None]
  place = np.arange(len(x))

  def head(h, w_q, w_k, w_v, w_o):
    q, k, v = rotate(h @ w_q, place, 10_000.0), rotate(h @ w_k, place, 10_000.0), h @ w_v
    # A row that sees nothing is padding, and is never read.
    score = jnp.where(seen, q @ k.T / E**0.5, -1e9)
    return jax.nn.softmax(score, axis=1) @ v @ w_o

  for layer in range(LAYERS):
    block = jax.tree.map(lambda w: w[layer], p["blocks"])  # noqa: B023
    a = block["attention"]
    h = norm(x, block["attention_norm"]["scale_E"])
    heads = (a["w_q_DHE"], a["w_k_DKE"], a["w_v_DKE"], a["w_o_HED"])
    x = x + jax.vmap(head, (None, 1, 1, 1, 0))(h, *heads).sum(0)
    h = norm(x, block["ffn_norm"]["scale_E"])
    f = block["ffn"]
    x = x + (jax.nn.silu(h @ f["w_gate_DF"]) * (h @ f["w_up_DF"])) @ f["w_down_FD"]
  return norm(x, p["final_norm"]["scale_E"])


def plain(mixer, p, tokens, reset, shift):
  """One lane: the hidden states of its tokens."""
  learned, summaries, hidden = p["summary_PD"], [], []
  borders = [*(np.arange(S) * N + shift), T]
  for s in range(S):
    if reset[s]:
      summaries = []
    if mixer == "autocompressor" and s % BACK == 0:
      summaries = [jax.lax.stop_gradient(x) for x in summaries]
    x = p["embed_VD"][tokens[borders[s] : borders[s + 1]]]
    if mixer == "rmt":
      memory = summaries[-1] if summaries else learned
      before, real, behind = memory, [True] * P, memory
    else:
      kept = summaries[-M:]
      missing = M - len(kept)
      before = jnp.concatenate([jnp.zeros((missing * P, x.shape[1])), *kept])
      real, behind = [False] * missing * P + [True] * len(kept) * P, learned
    out = decoder(p, jnp.concatenate([before, x, behind]), (*real, *[True] * (len(x) + P)))
    hidden.append(out[len(before) : len(before) + len(x)])
    summaries.append(out[-P:])
  return jnp.concatenate(hidden)


# Fast tests use no rematerialization and no random borders.
REMATS = (("rmt", "full", 0), ("autocompressor", "full", 0), ("autocompressor", "none", 0))
SLOW = {*REMATS, ("autocompressor", "none", 0.6)}
CASES = [("rmt", "none", 0), *sorted(SLOW)]


@pytest.mark.parametrize(
  "mixer,remat,jitter",
  [pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
)
def test_equals_the_loop_over_segments_forward_and_gradient(rng, mixer, remat, jitter):
  c = config(mixer, remat=remat, segment_jitter=jitter)
  params = fake_params(c)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  weight = rng.standard_normal((B, T, c.width))
  reset = np.array([[False, False, False, True, False], [False] * 5])
  shift = np.array([[0, -1, 1, 0, -1], [0, 1, 1, -1, 1]], np.int32) if jitter else 0 * reset
  moved = {"shift_BS": array(shift)} if jitter else {}

  def reference(p, tokens, weight):
    outs = [plain(mixer, p, tokens[b], reset[b], shift[b]) for b in range(B)]
    return (jnp.stack(outs) * weight).sum(), jnp.stack(outs)

  def ours(p, tokens, weight):
    model = bind(c, p)
    hidden, _ = model(tokens, model.state(B), reset_BS=array(reset), **moved)
    return (hidden * weight).sum(), hidden

  with jax.enable_x64(True):
    whole = jax.tree.map(lambda x: array(np.asarray(x, np.float64)), params)
    expected = jax.device_get(
      jax.jit(jax.value_and_grad(reference, has_aux=True))(whole, tokens, weight)
    )
  got = jax.jit(jax.value_and_grad(ours, has_aux=True))(params, tokens, np.float32(weight))

  def close(path, a, b):
    # The error bound is float32 rounding through segments and layers, relative to the array's size.
    error, size = np.abs(a - b).max(), np.abs(b).max()
    assert error <= 1e-4 * size, f"{jax.tree_util.keystr(path)}: off by {error / size}"

  close((), got[0][1], expected[0][1])  # the terms are compared, because the sum may cancel
  jax.tree_util.tree_map_with_path(close, got[1], expected[1])


def test_an_autocompressor_forgets_what_is_older_than_its_summaries(rng):
  c = config("autocompressor")
  model, tokens = bind(c, fake_params(c)), rng.integers(0, V, (1, T)).astype(np.int32)
  read = jax.jit(lambda tokens: model(tokens, model.state(1))[0])
  before = read(tokens)
  other = tokens.copy()
  other[0, 0] = (other[0, 0] + 1) % V
  differs = np.abs(read(other) - before).max((0, 2)).reshape(S, N).max(1)
  assert (differs[: M + 1] > 0).all(), "the first segment's summary is read by the next ones"


def test_random_borders_stay_in_reach_and_never_move_a_documents_start(rng):
  N, lanes, segments = 12, 64, 8
  c = model_config(mixer="autocompressor", segment_length=N, segment_jitter=0.5)
  reset = rng.random((lanes, segments)) < 0.2
  mask = np.ones((lanes, segments, N), bool)
  mask[rng.random((lanes, segments)) < 0.2, 7:] = False  # short segments, which end a document
  fixed = reset | ~mask.all(2) | (np.arange(segments) == 0)
  draw = jax.jit(lambda key: random_borders(c, key, array(reset), array(mask).reshape(lanes, -1)))
  shift, other = np.asarray(draw(jax.random.key(0))), np.asarray(draw(jax.random.key(1)))
  assert not shift[fixed].any()
  assert set(shift[~fixed].tolist()) == set(range(-3, 4)), "lengths of (1 +- 0.5) N"
  assert (shift != other).mean() > 0.3, "every step has its own"


def test_single_layers_cannot_be_cut():
  from infini_jax.config import InputError
  from tests.tiny import config as whole

  with pytest.raises(InputError, match="leave 'empty' or 'reads'"):
    whole(model={"mixer": "rmt"}, evaluation={"knock_out": ("layers",)})
