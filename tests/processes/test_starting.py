"""What prevents a process from joining the others is one line with the remedy."""

import socket

import jax
import pytest

from infini_jax.config import InputError
from infini_jax.processes import starting
from infini_jax.processes.joining import Settings
from tests.processes.conftest import free_port


@pytest.fixture
def seats(monkeypatch):
  """What the second process would print; neither it nor the thread of this process begins."""
  seats = []
  monkeypatch.setattr(starting.watchdog, "seat", lambda *lines: seats.append(lines))
  monkeypatch.setattr(starting.presence, "watch", lambda: seats.append("watched"))
  monkeypatch.setattr(jax.config, "update", lambda name, value: None)
  return seats


def test_a_single_process_joins_nobody(seats):
  assert starting.start(None) is False and not seats


def test_a_process_joins_with_its_settings(seats, monkeypatch):
  given = {}
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *args, **more: given.update(more, args=args)
  )
  assert starting.start(Settings("there:99", 2, 1, peer_timeout=7)) is True
  assert given["args"] == ("there:99", 2, 1) and given["heartbeat_timeout_seconds"] == 7
  (line, first, gone), watched = seats
  assert watched == "watched" and first == "there:99"
  assert "process 1 of 2 was killed, or lost the others" in line
  assert "process 0 does not answer" in gone


def test_a_port_that_is_taken_and_others_that_do_not_answer_are_one_line(seats, monkeypatch):
  port = free_port()
  with socket.socket() as taken:
    taken.bind(("", port))
    taken.listen()
    with pytest.raises(InputError, match=rf"--coordinator=localhost:{port}: port {port} cannot be"):
      starting.start(Settings(f"localhost:{port}", 2, 0))
  assert not seats

  def initialize(*args, **more):
    raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody came\nand a long trace")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  for how, who in (
    (Settings(f"localhost:{port}", 2, 0), "process 0 of 2"),
    (Settings(), "this process cannot join the others at what the cluster says"),
  ):
    with pytest.raises(InputError) as error:
      starting.start(how)
    assert who in str(error.value) and "nobody came)" in str(error.value)
    assert "\n" not in str(error.value) and "watched" not in seats
