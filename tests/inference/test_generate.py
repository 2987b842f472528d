"""Reading a prompt and writing on is one call over everything, made piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError, MeshConfig
from infini_jax.inference.generate import Generator
from infini_jax.inference.sampling import Sampling
from infini_jax.models import bind
from infini_jax.parallel import make_mesh, param_shardings
from tests.tiny import config, fake_params

N, GREEDY = 8, Sampling(temperature=0)
CASES = {
  "infini-linear": {},
  "infini-delta": {"rule": "delta", "kv_heads": 1},
  "local": {"mixer": "local"},
  "full": {"mixer": "full"},
  "transformer_xl": {"mixer": "transformer_xl"},
  "compressive": {"mixer": "compressive", "compression_rate": 2, "compressed_memory": 8},
  "rmt": {"mixer": "rmt", "summary_tokens": 3},
  "autocompressor": {"mixer": "autocompressor", "summary_tokens": 2, "summary_steps": 2},
  "memorizing": {"mixer": "memorizing", "knn_layers": (1,), "knn_memory": 24, "knn_top": 4},
}
CLOSE = dict(rtol=1e-4, atol=1e-5)


class Case:
  def __init__(self, **model):
    carry = model.get("mixer") != "full"
    self.config = config(
      model={"segment_length": N, "vocab_size": 32, **model},
      data={"carry_state": carry},
      evaluation={"segments": 2},
    )
    self.params = fake_params(self.config.model)
    self.generator = Generator(self.config, self.params)
    self._whole = jax.jit(self._whole_)

  def _whole_(self, tokens):
    model = bind(self.config.model, self.params)
    return model.logits(model(tokens, model.state(1))[0])[0]

  def whole(self, tokens):
    """Logits after every token, by one call (padded behind to one length: nothing looks there)."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(self._whole(jnp.asarray(padded)))[: len(tokens)]


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
  return Case(**CASES[request.param])


@pytest.fixture(scope="module")
def infini():
  return Case(**CASES["infini-delta"])


def draw(rng, *lengths):
  return [rng.integers(0, 32, n).astype(np.int32) for n in lengths]


@pytest.mark.parametrize("lengths", [(37, 35, 44, 40), (1, 29, 8, 16), (32, 33)], ids=str)
def test_ragged_prompts_give_the_logits_of_a_whole_call(rng, case, lengths):
  prompts, told = draw(rng, *lengths), []
  logits_BV, _ = case.generator.prefill(prompts, advance=told.append)
  for lane, prompt in enumerate(prompts):
    np.testing.assert_allclose(
      logits_BV[lane], case.whole(prompt)[-1], err_msg=f"prompt of {len(prompt)} tokens", **CLOSE
    )
  assert told == sorted(told) and told[-1] == max(lengths), "progress must end at the prompt's end"


def test_greedy_decoding_equals_whole_calls_across_segments(rng, case):
  prompts = draw(rng, 13, 22)
  written = np.stack(list(case.generator.generate(prompts, 20, GREEDY)), 1)
  assert written.shape == (2, 20)
  for prompt, tokens in zip(prompts, written, strict=True):
    logits = case.whole(np.concatenate([prompt, tokens]))[len(prompt) - 1 : -1]
    chosen = np.take_along_axis(logits, tokens[:, None], 1)[:, 0]
    np.testing.assert_allclose(
      chosen, logits.max(1), err_msg="a token was written that is not the likeliest", **CLOSE
    )


def test_the_state_does_not_grow(rng, infini):
  size = lambda stream: sum(x.nbytes for x in jax.tree.leaves(stream))
  sizes = {size(infini.generator.prefill(draw(rng, n))[1]) for n in (1, N, 20, 61)}
  assert len(sizes) == 1, f"the state's bytes depend on the prompt's length: {sizes}"
  m = infini.config.model
  memory = 4 * m.kv_heads * (m.head_dim**2 + m.head_dim)
  delta = 4 * m.kv_heads * (2 * m.head_dim**2 + m.head_dim)
  cache = 4 * 2 * N * m.kv_heads * m.head_dim + 4
  assert sizes == {m.layers * (memory + delta + cache)}


def test_the_prompt_is_read_to_its_first_token(rng, infini):
  (prompt,) = draw(rng, 60)
  other = prompt.copy()
  other[0] = (other[0] + 1) % 32
  a, b = (np.asarray(infini.generator.prefill([p])[0]) for p in (prompt, other))
  assert np.abs(a - b).max() > 1e-6, "the first token of a long prompt leaves no trace"


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 1, 1)], ids=str)
def test_the_same_on_a_mesh(rng, case, sizes):
  prompts = draw(rng, 21, 30)
  expected, _ = case.generator.prefill(prompts)
  mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: sizes[0]])
  with jax.set_mesh(mesh):
    params = jax.device_put(case.params, param_shardings(case.params, mesh))
    generator = Generator(case.config, params)
    logits_BV, stream = generator.prefill(prompts)
    np.testing.assert_allclose(logits_BV, expected, **CLOSE)
    written = list(generator.decode(logits_BV, stream, 3, GREEDY))
  np.testing.assert_array_equal(written[0], np.argmax(expected, 1))


def test_seeds_repeat_and_differ(rng, infini):
  prompts, sampling = draw(rng, 5, 9), Sampling(1.0, 0.95)
  runs = [np.stack(list(infini.generator.generate(prompts, 12, sampling, s))) for s in (0, 0, 1)]
  np.testing.assert_array_equal(runs[0], runs[1])
  assert not np.array_equal(runs[0], runs[2])


def test_lanes_do_not_disturb_each_other(rng, infini):
  prompts = draw(rng, 30, 3)
  together = np.stack(list(infini.generator.generate(prompts, 6, GREEDY)), 1)
  alone = np.stack(list(infini.generator.generate(prompts[:1], 6, GREEDY)), 1)
  np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("prompts", [[], [np.zeros(3, np.int32), np.zeros(0, np.int32)]], ids=len)
def test_an_empty_prompt_is_refused(infini, prompts):
  with pytest.raises(InputError, match="an empty prompt: give at least one token"):
    infini.generator.prefill(prompts)
