"""What is told of a memory while a text is read."""

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from infini_jax.inference import Session  # noqa: E402
from infini_jax.serve.job import Done, Progress  # noqa: E402
from infini_jax.serve.memory import looking, rounded  # noqa: E402
from tests.serve.models import unending  # noqa: E402


def test_progress_has_it_now_and_then_and_other_events_stay():
  session, told = Session(unending()), []
  emit = looking(session, told.append)
  events = [Progress(16, 0.5), Progress(32, 1.0), Done("kept")]
  for event in events:
    emit(event)
  assert [np.shape(event.used) for event in told[:1]] == [(2, 1)]
  assert told[1:] == events[1:]  # so soon after the first one, it is not looked at again
  assert told[0]._replace(used=None) == events[0]


def test_a_model_without_one_has_none():
  session, told = Session(unending(mixer="local")), []
  looking(session, told.append)(Progress(16, 0.5))
  assert told == [Progress(16, 0.5)]
  assert rounded(None) is None and rounded(np.array([0.12346])) == [0.1235]
