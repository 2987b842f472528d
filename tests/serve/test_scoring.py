"""The job that takes given tokens; its route is tested with the page."""

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from infini_jax.inference import Session  # noqa: E402
from infini_jax.inference.forced import log_probs  # noqa: E402
from infini_jax.serve.job import Done, Progress, Text  # noqa: E402
from infini_jax.serve.scoring import AT_A_TIME, Scoring  # noqa: E402
from tests.serve.models import unending  # noqa: E402


@pytest.fixture(scope="module")
def run():
  return unending()


@pytest.mark.parametrize("before", [1, 15, 16, 50])
def test_it_gives_way_to_others_and_ends_with_all_log_probabilities(run, before):
  read, given = [*range(5, 5 + before)], [*range(60, 60 + 2 * AT_A_TIME + 3)]
  events, alone = [], Session(run)
  alone.read([read])
  job = Scoring(Session(run), Text(iter(read)), given, events.append)
  turns = 1
  while job.read_on():
    turns += 1
  assert not job.writes and turns > len(given) // AT_A_TIME
  job.settle(None)
  assert all(isinstance(event, Progress) for event in events[:-1])
  assert events[-1] == Done(pytest.approx(log_probs(alone, given), abs=1e-5))
