"""A process that ends tells the others why, once."""

import json

import jax
import pytest

from infini_jax.processes import ending
from infini_jax.processes.ending import REASON, give_up, stop_all
from tests.processes.services import Service


class Ended(BaseException):
  """Instead of the end of this process; `status` is its exit status."""

  def __init__(self, status):
    self.status = status


class Alone(Service):
  """No other process comes to a barrier."""

  def wait_at_barrier(self, name, milliseconds):
    super().wait_at_barrier(name, milliseconds)
    raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody else has failed")


@pytest.fixture
def service(monkeypatch):
  """This process is number 1 of several, and has not begun to end."""
  service = Alone()
  for name, value in (
    *[("_calls", []), ("client", lambda: service), ("joined", lambda: True)],
    *[("process_index", lambda: 1), ("farewell", lambda: None), ("LEAVE_SECONDS", 0)],
  ):
    monkeypatch.setattr(ending, name, value)

  def end(status):
    raise Ended(status)

  monkeypatch.setattr(ending.os, "_exit", end)
  return service


def test_the_reason_is_told_and_printed_and_a_second_call_ends_at_once(service, capfd):
  with pytest.raises(Ended) as ended:
    stop_all(75, "stopped at step 3")
  assert ended.value.status == 75
  assert json.loads(service.keys[REASON]) == [1, 75, "it was told to stop"] and not service.waits
  assert capfd.readouterr().err == "infini-jax: stopped at step 3\n"
  with pytest.raises(Ended) as ended:
    give_up(1, "a second signal", why="another")
  assert ended.value.status == 1 and len(service.keys) == 1 and not capfd.readouterr().err


def test_a_failure_waits_for_others_that_fail_alike(service, monkeypatch, capfd):
  monkeypatch.setattr(ending, "process_index", lambda: 0)
  with pytest.raises(Ended) as ended:
    give_up(2, why="no such folder")
  assert ended.value.status == 2 and service.waits == ["failed"]
  assert json.loads(service.keys[REASON]) == [0, 2, "no such folder"] and not capfd.readouterr().err
