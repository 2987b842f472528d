"""Given tokens: the log-probabilities are those of the model's own writing, and change nothing."""

import numpy as np
import pytest

from infini_jax.inference import Session
from infini_jax.inference.batch import Batch, catch_up
from infini_jax.inference.forced import log_probs
from infini_jax.inference.sampling import Sampling
from tests.serve.models import unending


@pytest.fixture(scope="module")
def run():
  return unending()


@pytest.mark.parametrize("length", [1, 7, 40])
def test_they_are_those_of_the_tokens_that_are_drawn(run, length):
  session, given = Session(run), Session(run)
  for each in (session, given):
    each.read([[*range(5, 5 + length)]])
  while catch_up(session):
    pass
  batch = Batch(run.engine, 2)
  lane = batch.join(session, Sampling(), seed=length)
  drawn = [batch.step()[lane] for _ in range(12)]
  session = batch.leave(lane)
  found = log_probs(given, [one.token for one in drawn])
  np.testing.assert_allclose(found, [one.logprob for one in drawn], rtol=1e-4, atol=1e-5)
  assert given.positions == session.positions and given.recent == session.recent


def test_all_next_tokens_have_a_probability_of_1_together(run):
  session = Session(run)
  session.read([[5, 6, 7]])
  V = session.run.engine.config.model.vocab_size
  found = [log_probs(session.fork(), [token])[0] for token in range(V)]
  assert np.exp(found).sum() == pytest.approx(1, rel=1e-4)
