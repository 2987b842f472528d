"""How much of a memory is in use: 0 when it is empty, more with text, never above all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.engine import Engine
from infini_jax.inference.filling import effective_rank, used
from tests.serve.models import Unending, model, unending

PATTERN = {"pattern": ("local", "infini")}


def test_a_memory_fills_as_segments_close():
  session = Session(unending())
  assert (used(session) == 0).all()
  session.read([[5] * 40])  # one token again and again
  few = used(session)
  session.read([[*range(5, 205)]])
  many = used(session)
  assert few.shape == (session.run.engine.config.model.layers, 1)
  assert (few > 0).all() and (many > few).all() and (many <= 1).all()
  assert session.positions == [241]


def test_layers_without_a_memory_are_0_and_models_without_one_have_none():
  session = Session(OpenedRun(Engine(*model(layers=2, **PATTERN)), Unending()))
  session.read([[*range(5, 105)]])
  local, infini = used(session)
  assert (local == 0).all() and (infini > 0).all()
  assert used(Session(OpenedRun(Engine(*model(mixer="local")), Unending()))) is None


@given(arrays.arrays(np.float64, (4, 5), elements=st.floats(-9, 9, width=16)), st.floats(0.1, 100))
def test_the_effective_rank_is_between_1_and_the_rank_and_has_no_scale(M, scale):
  found = effective_rank(M)
  assert found == 0 if not M.any() else 1 - 1e-9 <= found <= np.linalg.matrix_rank(M) + 1e-6
  assert effective_rank(scale * M) == pytest.approx(found, rel=1e-6)
  assert effective_rank(np.eye(5)) == pytest.approx(5)
