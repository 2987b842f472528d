"""Whole documents, nothing dropped, nothing counted twice, however they are cut."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.data import prepare
from infini_jax.evaluation.perplexity import Perplexity
from infini_jax.models import bind, init
from infini_jax.parallel import make_mesh
from tests import tiny

N = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  tiny.write_corpus(folder / "text")
  return prepare(str(folder / "text"), folder / "store", "bytes", console=tiny.quiet())


@pytest.fixture(scope="module")
def params():
  model = tiny.config().model
  return jax.jit(lambda key: init(dataclasses.replace(model, gate_init=1.0), key))(
    jax.random.key(3)
  )


def scores(store, params, *, mixer="infini", knock_out=False, devices=1, **evaluation):
  config = tiny.config(
    model={"mixer": mixer},
    data={"carry_state": False},
    evaluation=evaluation,
    mesh={"data": devices},
  )
  mesh = make_mesh(config.mesh, jax.devices()[:devices])
  with jax.set_mesh(mesh):
    return Perplexity(config, mesh, store.split("test"), store.tokenizer).run(
      params, knock_out=knock_out
    )


def one_by_one(store, params):
  """The plain way: each document in one call, its own mark in front."""
  config = tiny.config().model
  documents = store.split("test")
  longest = -(-int(documents.tokens.max()) // N) * N

  @jax.jit
  def nll(tokens_BT, targets_BT):
    model = bind(config, params)
    logits = model.logits(model(tokens_BT, model.state(1))[0])
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets_BT[..., None], axis=-1)[0, :, 0]

  result = []
  for d in range(len(documents)):
    n = int(documents.tokens[d])
    ids = np.zeros((1, longest + 1), np.int32)
    ids[0, : n + 1] = [store.tokenizer.bos, *documents.read(d, 0, n)]
    result.append((n, float(np.asarray(nll(ids[:, :-1], ids[:, 1:]), np.float64)[:n].sum())))
  return result


def test_equals_reading_each_document_alone(store, params):
  got = scores(store, params, lanes=2, segments=2)
  expected = one_by_one(store, params)
  assert [(n, pytest.approx(nats, rel=1e-5)) for _, n, nats in got.per_document] == expected
  assert got.tokens == int(store.split("test").tokens.sum())
  assert got.bytes == int(store.split("test").bytes.sum())
  assert got.words == int(store.split("test").words.sum())


@pytest.mark.parametrize("mixer", ["infini", "full"])
def test_chunk_length_and_width_change_nothing(store, params, mixer):
  if mixer == "full":
    params = {**params, "blocks": {**params["blocks"]}}
    params["blocks"]["attention"] = {**params["blocks"]["attention"], "mixer": {}}
    params["blocks"]["attention"].pop("mixer")
  a, b, c = (
    scores(store, params, mixer=mixer, lanes=lanes, segments=segments)
    for lanes, segments in ((1, 1), (3, 4), (8, 2))
  )
  wide = scores(store, params, mixer=mixer, lanes=8, segments=2, devices=8)
  assert (wide.tokens, wide.nats) == (c.tokens, pytest.approx(c.nats, rel=1e-5)), "eight devices"
  assert a.tokens == b.tokens == c.tokens
  assert a.nats == pytest.approx(b.nats, rel=1e-5) == pytest.approx(c.nats, rel=1e-5)
  for field in ("by_position", "by_compressions"):
    for start, (tokens, nats) in getattr(a, field).items():
      assert getattr(c, field)[start] == (tokens, pytest.approx(nats, rel=1e-4)), field


def test_buckets_sum_to_the_totals_and_start_where_they_say(store, params):
  got = scores(store, params, lanes=2, segments=2)
  for buckets in (got.by_position, got.by_compressions):
    assert sum(n for n, _ in buckets.values()) == got.tokens
    assert math.fsum(x for _, x in buckets.values()) == pytest.approx(got.nats)
  sizes = store.split("test").tokens
  assert got.by_compressions[0][0] == int(np.minimum(sizes, N).sum())
  assert got.by_compressions[2][0] == int((np.clip(sizes, 2 * N, 4 * N) - 2 * N).sum())
  assert got.by_position[0][0] == int(np.minimum(sizes, 128).sum())


def test_knock_out_is_the_local_model_with_the_same_parameters(store, params):
  out = scores(store, params, knock_out=True, lanes=2, segments=2)
  without = {**params["blocks"]["attention"]}
  without.pop("mixer")
  blocks = {**params["blocks"], "attention": without}
  local = scores(store, {**params, "blocks": blocks}, mixer="local", lanes=2, segments=2)
  assert out.nats == pytest.approx(local.nats, rel=1e-6)
  assert out.nats != pytest.approx(scores(store, params, lanes=2, segments=2).nats, rel=1e-4)


def test_figures_follow_from_the_totals(store, params):
  got = scores(store, params)
  assert got.perplexity == pytest.approx(math.exp(got.nats / got.tokens))
  assert got.word_perplexity == pytest.approx(math.exp(got.nats / got.words))
  assert got.bits_per_byte == pytest.approx(got.nats / math.log(2) / got.bytes)


def test_limits_on_documents_and_on_their_length(store, params):
  got = scores(store, params, max_documents=2, max_tokens=37)
  assert (got.documents, got.tokens) == (2, 74)
  texts = [store.tokenizer.decode(store.split("test").read(d, 0, 37)) for d in range(2)]
  assert got.bytes == sum(len(t.encode()) for t in texts)
  assert got.words == sum(len(t.split()) for t in texts)
