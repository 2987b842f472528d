"""The log-probabilities of given tokens, which replace drawn ones.

One token at a time goes through the model, with the program of decoding. So nothing is compiled if
the model has written before, and the numbers equal those of a text that it writes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from infini_jax.inference.batch import catch_up
from infini_jax.inference.lane import uninterrupted
from infini_jax.inference.session import Session


def log_probs(session: Session, tokens: Sequence[int]) -> list[float]:
  """Appends tokens to a text; returns the natural logarithm of the probability of each.

  Args:
    session: of one lane, in which at least one token waits; the tokens become part of its text.
    tokens: known to the model; marks of documents may be among them.
  """
  while catch_up(session):
    pass
  lane, found = session._lanes[0], []
  for token in tokens:
    with uninterrupted():
      logits_V = np.asarray(session._feed([0]), np.float64)[0]
      lane.take([token])
    found.append(float(log_softmax(logits_V)[token]))
  return found
