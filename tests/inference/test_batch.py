"""Sessions that write together write what each would write alone."""

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.inference import Session
from infini_jax.inference.batch import Batch, catch_up
from infini_jax.inference.sampling import Sampling
from tests.inference.test_session import Case
from tests.tiny import systems

LANES = 4
HOW = [Sampling(0.0), Sampling(0.9, 0.9)]  # others are in test_sampling.py


@pytest.fixture(scope="module")
def case():
  return Case(rule="delta", kv_heads=1)


@pytest.fixture(scope="module")
def batch(case):
  return Batch(case.run.engine, LANES)


def read(case, rng, *lengths):
  """Sessions that have read random texts."""
  sessions = [Session(case.run) for _ in lengths]
  for session, length in zip(sessions, lengths, strict=True):
    session.read([rng.integers(0, 256, length)])
  return sessions


def write(batch, sessions, tokens=30, how=HOW, likeliest=False):
  """What sessions write, which begin as soon as there is a lane; by session."""
  todo, lanes = list(enumerate(sessions)), {}
  written = [[] for _ in sessions]
  while todo or lanes:
    while todo and batch.free:
      i, session = todo.pop(0)
      while catch_up(session):
        pass
      lanes[batch.join(session, how[i % len(how)], i, likeliest)] = i
    for lane, drawn in batch.step().items():
      written[lanes[lane]].append(drawn)
      if len(written[lanes[lane]]) == tokens + lanes[lane]:
        assert batch.leave(lane) is sessions[lanes.pop(lane)]
  return written


def alone(session, i, tokens=30):
  """What a session writes by itself, with its logits where a token is not the same by a hair."""
  how = HOW[i % len(HOW)]
  pieces = session.generate(
    tokens + i,
    temperature=how.temperature,
    top_p=how.top_p,
    top_k=how.top_k,
    repetition_penalty=how.repetition_penalty,
    seed=i,
  )
  return [piece.token for piece in pieces]


def check(case, batch, rng):
  sessions = read(case, rng, 3, 14, 25, 36, 47, 58)
  forks = [session.fork() for session in sessions]
  written = write(batch, forks)
  for i, (session, drawn) in enumerate(zip(sessions, written, strict=True)):
    tokens, want = [each.token for each in drawn], alone(session, i)
    if tokens != want:  # rounding may decide between two tokens that are equally likely
      at = next(at for at, (a, b) in enumerate(zip(tokens, want, strict=True)) if a != b)
      assert abs(drawn[at].logprob - _logprob(case, session, want, at)) < 1e-5, (i, at)


def _logprob(case, session, want, at):
  """The logarithm of the probability of what the session wrote at a place."""
  text = [*session.recent[0]]
  logits = case.whole(np.array(text))[-(len(want) - at) - 1].astype(np.float64)
  return logits[want[at]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def test_sessions_of_a_batch_write_what_they_write_alone(rng, case, batch):
  check(case, batch, rng)


@pytest.mark.slow
@pytest.mark.parametrize("system", systems(of={"rmt": 0, "transformer_xl": 0, "memorizing": 0}))
def test_so_do_those_of_other_systems(rng, system):
  fields = {"rmt": {"summary_tokens": 3}, "memorizing": {"knn_layers": (1,), "knn_memory": 24}}
  case = Case(mixer=system, **fields.get(system, {}))
  check(case, Batch(case.run.engine, LANES), rng)


def test_neighbours_and_lanes_change_no_bit(rng, case, batch):
  """A text and its probabilities are the same to the last bit in every lane, beside any others."""
  session, *others = read(case, rng, 20, 33, 7, 50)
  session.read([[7]])
  (apart,) = write(batch, [session.fork()], how=HOW[1:], likeliest=True)
  for place in range(LANES):
    mixed = [other.fork() for other in others]
    mixed.insert(place, session.fork())
    while catch_up(mixed[place]):
      pass
    lanes = {}
    for i, one in enumerate(mixed):
      while catch_up(one):
        pass
      lanes[i] = batch.join(one, HOW[1] if i == place else HOW[i % 2], 0, i == place)
    drawn = [batch.step()[lanes[place]] for _ in range(30)]
    for lane in lanes.values():
      batch.leave(lane)
    assert drawn == apart


def test_a_session_that_leaves_goes_on_by_itself(rng, case, batch):
  (session,) = read(case, rng, 21)
  fork = session.fork()
  first = write(batch, [session], 10, [Sampling(0.0)])[0]
  rest = [piece.token for piece in session.generate(10, temperature=0.0)]
  want = [piece.token for piece in fork.generate(20, temperature=0.0)]
  assert [each.token for each in first] + rest == want
  assert session.positions == fork.positions


def test_the_likeliest_tokens_come_in_order_with_their_probabilities(rng, case, batch):
  (drawn,) = write(batch, read(case, rng, 20), 5, [Sampling(0.0)], likeliest=True)
  for each in drawn:
    logprobs = [logprob for _, logprob in each.likeliest]
    assert logprobs == sorted(logprobs, reverse=True) and len(logprobs) == 20
    assert each.likeliest[0] == (each.token, pytest.approx(each.logprob))
    assert np.exp(logprobs).sum() <= 1 + 1e-5


def test_a_state_that_grows_is_refused():
  with pytest.raises(InputError, match="grows with the text"):
    Batch(Case(mixer="full").run.engine, 2)
