"""The log-probabilities of texts are those of a plain forward pass; the session stays as it is."""

import functools
import io
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference import Session
from infini_jax.inference.scoring import How, Text, each_of
from infini_jax.models import bind
from infini_jax.models.states import held_L
from tests.inference.test_session import CASES, CHUNK, N, case_of, draw, kept

CLOSE = dict(rtol=1e-5, atol=2e-5)


SYSTEMS = [
  pytest.param(name, marks=[pytest.mark.slow] * (name != "infini-delta")) for name in CASES
]


@pytest.fixture(scope="module", params=SYSTEMS)
def case(request):
  return case_of(request.param)


@pytest.fixture(scope="module")
def infini():
  return case_of("infini-delta")


def log_probs(logits, ids):
  """In float64: of each token, given the logits before it."""
  logits = np.asarray(logits, np.float64)
  top = logits.max(1, keepdims=True)
  chosen = np.take_along_axis(logits, np.asarray(ids)[:, None], 1)[:, 0]
  return chosen - top[:, 0] - np.log(np.exp(logits - top).sum(1))


def plain(case, before, text):
  """The log-probabilities of a text after another one, by one call over all tokens."""
  tokens = np.concatenate([[256], before, text])
  return log_probs(case.whole(tokens)[len(before) : -1], text)


@functools.cache
def empty_reader(case):
  """The program of `emptied`: from parameters and tokens to logits."""
  held = held_L(case.config.model)
  how = {"reset_BS": jnp.ones((1, 96 // N), bool)} if held is None else {"empty_L": held}

  @jax.jit
  def read(params, tokens):
    model = bind(case.config.model, params)
    return model.logits(model(tokens, model.state(1), **how)[0])[0]

  return read


def emptied(case, before, text):
  """The same with the memory held empty, by one call in which every segment is reset."""
  tokens = np.concatenate([[256], before, text])
  padded = np.zeros((1, 96), np.int32)
  padded[0, : len(tokens)] = tokens
  logits = np.asarray(empty_reader(case)(case.params, padded))[: len(tokens)]
  return log_probs(logits[len(before) : -1], text)


def test_a_text_is_as_likely_as_a_forward_pass_says(rng, case, tmp_path):
  for before, size in ((0, 60), (int(rng.integers(1, 40)), int(rng.integers(1, 50)))):
    read, text = draw(rng, before, size)
    session = Session(case.run)
    session.read(read)
    first = kept(session, tmp_path)
    found = session.score(text)
    wanted = plain(case, read, text)
    np.testing.assert_allclose(found.log_probs, wanted, **CLOSE)
    np.testing.assert_array_equal(found.ids, text)
    assert found.tokens == size and found.bytes is None and found.bits_per_byte is None
    assert found.log_prob == pytest.approx(wanted.sum(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-5)
    assert kept(session, tmp_path) == first, "the session has changed"


def test_with_the_memory_held_empty_every_segment_is_alone(rng, case):
  model = case.config.model
  if not model.memory.remembers:
    with pytest.raises(InputError, match="has no memory to hold empty"):
      Session(case.run).score("a", empty=True)
    return
  places = [0] if held_L(model) is not None else [0, int(rng.integers(1, 40))]
  for before in places:
    read, text = draw(rng, before, 60 - before)
    session = Session(case.run)
    session.read(read)
    found = session.score(text, empty=True)
    np.testing.assert_allclose(found.log_probs, emptied(case, read, text), **CLOSE)
  if len(places) == 1:
    session.read(draw(rng, CHUNK + 1)[0])
    with pytest.raises(InputError, match="score the whole text from its beginning"):
      session.score(text, empty=True)


def test_texts_of_a_list_follow_the_same_text(rng, infini):
  """More of them than lanes, and of every length; the last is empty."""
  read, *texts = draw(rng, 29, *rng.integers(1, 50, 9), 0)
  session = Session(infini.run)
  session.read(read)
  found = session.score([text.tolist() for text in texts])
  for one, text in zip(found, texts, strict=True):
    np.testing.assert_allclose(one.log_probs, plain(infini, read, text), **CLOSE)
  assert found[-1].tokens == 0 and found[-1].log_prob == 0 and math.isnan(found[-1].perplexity)


def test_each_lane_scores_a_text_of_its_own(rng, infini):
  first, second, one, other = draw(rng, 30, 7, 20, 33)
  session = Session(infini.run, lanes=2)
  session.read([first, second])
  found = session.score([one, other])
  np.testing.assert_allclose(found[0].log_probs, plain(infini, first, one), **CLOSE)
  np.testing.assert_allclose(found[1].log_probs, plain(infini, second, other), **CLOSE)
  # And several of each lane.
  texts = [Text(1, one), Text(0, other), Text(1, other)]
  found = each_of(session.run, session._stream, session._lanes, texts, How())
  for score, read, text in zip(found, (second, first, second), (one, other, other), strict=True):
    np.testing.assert_allclose(score.log_probs, plain(infini, read, text), **CLOSE)


def test_the_likeliest_text_is_the_one_that_is_written(rng, infini):
  session = Session(infini.run)
  session.read(draw(rng, 20)[0])
  written = [piece.token for piece in session.fork().generate(6, temperature=0)]
  other = [(written[0] + 1) % 256, *written[1:]]
  likeliest, unlikely = session.score([written, other])
  assert likeliest.likeliest and not unlikely.likeliest


def test_files_streams_and_texts_give_the_same(rng, infini, tmp_path):
  text = "".join(rng.choice(list("abcé \n"), 300))
  session = Session(infini.run)
  found = session.score(text)
  assert found.bytes == len(text.encode()) == found.tokens
  assert found.bits_per_byte == pytest.approx(-found.log_prob / math.log(2) / found.bytes)
  (tmp_path / "text").write_text(text, "utf-8")
  for source in (tmp_path / "text", io.StringIO(text), list(text.encode())):
    again = session.score(source)
    np.testing.assert_array_equal(again.log_probs, found.log_probs)
  assert len(session.score([tmp_path / "text", text[:9]])) == 2


def test_an_endless_text_is_scored_in_constant_memory(infini):
  """Each chunk is given when it has been read; the next tokens are taken after it."""
  taken, given = 0, 0

  def endless():
    nonlocal taken
    for token in itertools.islice(itertools.cycle(range(250)), 2000):
      taken += 1
      yield token

  for block in Session(infini.run).scored(endless()):
    given += len(block.ids)
    assert len(block.ids) == len(block.log_probs) and taken - given <= 2 * CHUNK
  assert given == taken == 2000


def test_a_loaded_state_scores_the_same(rng, infini, tmp_path):
  read, text = draw(rng, 29, 20)
  session = Session(infini.run)
  session.read(read)
  session.save(tmp_path / "state")
  again = Session.load(tmp_path / "state", model=session)
  for empty in (False, True):
    wanted, found = (one.score(text, empty=empty).log_probs for one in (session, again))
    np.testing.assert_array_equal(wanted, found)
  again._lanes[0].open = None  # as if the open segment were longer than the last tokens
  with pytest.raises(InputError, match="does not hold the tokens of the open segment"):
    again.score(text, empty=True)


def test_wrong_inputs_are_one_line(infini):
  one, two = Session(infini.run), Session(infini.run, lanes=2)
  for call, message in (
    (lambda: one.score([3, 264]), "token 264: the model has 0 to 263"),
    (lambda: one.score(__file__), "a file of this name exists"),
    (lambda: one.score([7, 256]), "a document's mark among tokens"),
    (lambda: one.score(7), "cannot read 7"),
    (lambda: two.score("a text"), "a session of 2 lanes scores a list of 2 texts"),
    (lambda: Session(infini.run, begin=False).score("a"), "read at least one token before"),
  ):
    with pytest.raises(InputError, match=message) as error:
      call()
    assert "\n" not in str(error.value)
