"""Prefill and decoding against one call over the whole sequence."""

import dataclasses

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference.generate import Generator
from infini_jax.inference.sampling import Sampling
from infini_jax.models import bind, init
from tests import tiny

N = 8
KINDS = {
  "linear": {"mixer": "infini", "rule": "linear"},
  "delta": {"mixer": "infini", "rule": "delta"},
  "local": {"mixer": "local"},
  "full": {"mixer": "full"},
}
GREEDY = Sampling(temperature=0)


@pytest.fixture(params=KINDS, scope="module")
def model(request):
  """A generator, and the logits of a whole call as `whole(tokens_T) -> (T, V)`."""
  config = tiny.config(evaluation={"segments": 2}, data={"carry_state": False})
  small = tiny.model_config(**KINDS[request.param], kv_heads=1, gate_init=0.3)
  config = dataclasses.replace(config, model=small)
  params = jax.jit(lambda key: init(small, key))(jax.random.key(7))

  @jax.jit
  def logits(tokens_BT):
    bound = bind(small, params)
    return bound.logits(bound(tokens_BT, bound.state(1))[0])

  def whole(tokens_T):
    padded = np.zeros((1, 8 * N), np.int32)  # causal: what comes after changes nothing
    padded[0, : len(tokens_T)] = tokens_T
    return np.asarray(logits(padded))[0, : len(tokens_T)]

  return Generator(config, params), whole, request.param


def prompts(rng, *lengths):
  return [rng.integers(0, 32, n).astype(np.int32) for n in lengths]


def test_ragged_prompts_of_many_segments_are_read_whole(model, rng):
  generator, whole, _ = model
  lanes = prompts(rng, 3, N, 2 * N, 5 * N + 3, 7 * N)
  logits_BV, _ = generator.prefill(lanes)
  for lane, logits_V in zip(lanes, np.asarray(logits_BV), strict=True):
    np.testing.assert_allclose(
      logits_V, whole(lane)[-1], atol=2e-5, err_msg=f"the prompt of {len(lane)} tokens"
    )


def test_whole_chunks_are_used_and_change_nothing(model, rng):
  generator, whole, _ = model
  (lane,) = prompts(rng, 6 * N + 1)
  seen = []
  logits_BV, _ = generator.prefill([lane], advance=seen.append)
  assert seen == [2 * N, 4 * N, 6 * N, 6 * N + 1], "whole chunks first, then the open segment"
  np.testing.assert_allclose(np.asarray(logits_BV)[0], whole(lane)[-1], atol=2e-5)


def test_greedy_decoding_is_the_argmax_of_whole_calls_across_boundaries(model, rng):
  generator, whole, _ = model
  lanes = prompts(rng, 2 * N - 3, 4)
  out_TB = np.stack(list(generator.generate(lanes, 2 * N + 2, GREEDY)))
  for lane, written in zip(lanes, out_TB.T, strict=True):
    logits_TV = whole(np.concatenate([lane, written]))
    expected = logits_TV[len(lane) - 1 : -1].argmax(-1)
    np.testing.assert_array_equal(written, expected)


def test_the_first_token_of_a_long_prompt_matters_where_there_is_a_memory(model, rng):
  generator, _, kind = model
  (lane,) = prompts(rng, 5 * N + 2)
  other = lane.copy()
  other[0] = (lane[0] + 1) % 32
  (a, _), (b, _) = generator.prefill([lane]), generator.prefill([other])
  moved = float(np.abs(np.asarray(a) - np.asarray(b)).max())
  assert (moved == 0) == (kind == "local"), f"the logits moved by {moved}"


def test_the_state_does_not_grow(model, rng):
  generator, _, kind = model
  size = lambda stream: sum(x.nbytes for x in jax.tree.leaves(stream))
  short, long = (size(generator.prefill(prompts(rng, n))[1]) for n in (3, 6 * N + 3))
  assert (long > short) == (kind == "full")


def test_an_empty_prompt_is_refused(model):
  with pytest.raises(InputError, match="empty prompt"):
    model[0].prefill([np.zeros(0, np.int32)])
