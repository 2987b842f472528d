"""A process that dies or hangs is named in the last line of the others, which end in time."""

import json
import signal
import time

import jax
import pytest

from infini_jax.processes import presence
from infini_jax.processes.ending import REASON
from infini_jax.processes.presence import GRACE, SILENT, Presence, Signs, last_words, named
from tests.processes.conftest import free_port
from tests.processes.services import Service
from tests.processes.test_runs import endless


def test_a_process_is_missing_when_its_number_stands_still():
  signs = Signs(3, 0.0)
  assert signs.take({0: 1, 1: 1}, 1.0) == [], "at the start all have time to begin"
  assert signs.take({0: 2, 1: 1}, SILENT + 0.5) == [2], "it never began"
  assert signs.take({0: 3, 1: 1, 2: 1}, SILENT + 1.5) == [1]
  assert signs.take({0: 4, 1: 2, 2: 2}, SILENT + 2.0) == [], "it was only slow"


def test_the_missing_are_named():
  assert named([]) == ""
  assert named([1]) == "process 1 does not answer"
  assert named([0, 3]) == "processes 0, 3 do not answer"
  assert last_words("process 1 of 2", [0]).startswith(
    "infini-jax: process 1 of 2 ends: process 0 does not answer. Start all of them"
  )


@pytest.fixture
def service(monkeypatch):
  """Two processes have a service; the test says which of them this process is."""
  service = Service()
  monkeypatch.setattr(presence, "client", lambda: service)
  monkeypatch.setattr(presence, "process_count", lambda: 2)
  monkeypatch.setattr(presence, "process_index", lambda: 0)
  return service


@pytest.fixture
def ended(monkeypatch):
  """The calls that would have ended this process."""
  calls = []
  monkeypatch.setattr(presence, "give_up", lambda *args, **how: calls.append((*args, how)))
  return calls


def test_process_0_publishes_who_is_missing_and_all_follow_one_that_stopped(
  service, ended, monkeypatch
):
  now = [0.0]
  monkeypatch.setattr(presence.time, "monotonic", lambda: now[0])
  both = [Presence(lambda missing: None) for _ in range(2)]

  def beat(me, at):
    now[0] = at
    monkeypatch.setattr(presence, "process_index", lambda: me)
    return both[me]._beat()

  assert [beat(0, 1.0), beat(1, 1.0), beat(0, 2.0)] == [[], [], []]
  assert beat(0, 3 + SILENT) == [1] and beat(1, 3 + SILENT) == [1], "as process 0 has published"
  assert beat(0, 4 + SILENT) == [], "it was only slow"
  service.key_value_set(REASON, json.dumps([1, 75, "it was told to stop"]))
  beat(0, 5 + SILENT)
  assert not ended, "it may end by itself"
  beat(0, 5.1 + SILENT + GRACE)
  assert ended == [(75, "process 1 stopped: it was told to stop", {"together": False})]


def test_a_service_that_does_not_answer_is_process_0(service, ended, monkeypatch):
  monkeypatch.setattr(presence, "BEAT", 0.01)
  monkeypatch.setattr(presence, "SILENT", 60.0)  # process 1 is not missing yet
  monkeypatch.setattr(presence.atexit, "register", lambda call: None)
  told = []
  monkeypatch.setattr(presence.watchdog, "tell", told.append)
  monkeypatch.setattr(presence, "_presence", None)
  presence.watch()
  try:
    assert presence._presence.wait(0.1) == [], "nobody is missing"
    service.lost = True
    assert presence._presence.wait(30) == [0]
    with presence.guard():
      raise jax.errors.JaxRuntimeError("INTERNAL: a device lost its peer\nand more")
  finally:
    presence._presence.stop()
  (line,) = told
  assert line.startswith("infini-jax: process 0 of 2 ends: process 0 does not answer. Start all")
  ((status, said, how),) = ended
  assert status == 1 and how == {"together": False, "why": ""}, "there is no service to tell it to"
  assert said.startswith("process 0 of 2 ends: process 0 does not answer (INTERNAL: a device lost")


JOINED = """
import os, sys, time
from infini_jax import processes
processes.start(processes.settings(os.environ))
print("joined", flush=True)
if sys.argv[1:] == ["stop"]:
  time.sleep(3)
  processes.stop_all(75, "told to stop while it starts or compiles")
for _ in range(120):
  time.sleep(1)
"""


@pytest.fixture
def joined(processes):
  """Starts processes that only wait."""

  def start(count, *arguments):
    port, environ = free_port(), {"INFINI_PEER_TIMEOUT": "10"}
    all_ = [
      processes(("-c", JOINED, *more), i, count, count, port, **environ)
      for i, more in enumerate((*arguments, *[()] * count)[:count])
    ]
    for process in all_:
      assert process.stdout.readline() == "joined\n"
    return all_

  return start


def others_of(all_, victim):
  """The statuses of all but one process, and their only lines, which are the last, at their end."""
  since, found = time.monotonic(), []
  for i, process in enumerate(all_):
    if i != victim:
      _, err = process.communicate(timeout=90)
      lines = err.rstrip().splitlines()
      assert [line for line in lines if line.startswith("infini-jax")] == lines[-1:], err
      found.append((process.returncode, lines[-1]))
  return found, time.monotonic() - since


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_dies_or_hangs_is_named_in_the_last_line_of_all_others(joined, victim, number):
  """Without a computation: JAX's service alone notices it."""
  all_ = joined(3)
  time.sleep(3)
  all_[victim].send_signal(number)
  found, seconds = others_of(all_, victim)
  assert seconds < 10 + 15
  for status, line in found:
    assert status not in (0, None)
    assert f"ends: process {victim} does not answer" in line, line
    assert "newest checkpoint" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_that_loses_a_process_names_it_in_its_last_line(command, job, victim, number):
  both = endless(command, job, f"{number.name}{victim}")
  both[victim].send_signal(number)
  ((status, line),), seconds = others_of(both, victim)
  assert seconds < 15 + 20 and status not in (0, None)
  assert line.startswith(f"infini-jax: process {1 - victim} of 2 ends: "), line
  assert f"process {victim} does not answer" in line and "newest checkpoint" in line


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_a_stop_of_one_process_ends_all_with_its_status(joined, first):
  """Also those that compute: their main thread does not look for it."""
  all_ = joined(2, *[("stop",) if i == first else () for i in range(2)])
  found, seconds = others_of(all_, None)
  assert [status for status, _ in found] == [75, 75] and seconds < 15
  assert found[1 - first][1] == f"infini-jax: process {first} stopped: it was told to stop"
