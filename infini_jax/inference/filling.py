"""How much of a matrix memory is in use."""

import numpy as np

from infini_jax.inference.session import Session
from infini_jax.models.mixers import MIXERS


def used(session: Session) -> np.ndarray | None:
  """The share of its directions that each head's memory uses, (L, K), 0 to 1; None without such.

  A memory is a matrix of E keys by U values, so it has at most min(E, U) directions. The number of
  those in use is its effective rank: the exponential of the entropy of its singular values. It is
  0 in an empty memory, and in layers without one. It is a fact about the matrix, and does not say
  what can be recalled from it.

  Args:
    session: of one lane. Its state is brought to the host.
  """
  model = session.run.engine.config.model
  if not model.memory.matrix:
    return None
  stream = session.run.engine.together(session._stream)
  parts = stream if model.pattern else {model.mixer: stream}
  used_LK = np.zeros((model.layers, model.kv_heads))
  for name, own in model.by_system.items():
    if own.memory.matrix:
      M_LBKEU, _ = MIXERS[name].close(parts[name])
      M_LKEU = np.asarray(M_LBKEU, np.float64)[:, 0]
      used_LK[list(model.layers_of(name))] = effective_rank(M_LKEU) / min(M_LKEU.shape[2:])
  return used_LK


def effective_rank(M: np.ndarray) -> np.ndarray:
  """Of each matrix (..., E, U): from 1 to min(E, U); 0 if all of it is 0."""
  values = np.linalg.svd(M, compute_uv=False)
  sums = values.sum(-1, keepdims=True)
  shares = values / np.where(sums > 0, sums, 1.0)
  entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), -1)
  return np.where(sums[..., 0] > 0, np.exp(entropy), 0.0)
