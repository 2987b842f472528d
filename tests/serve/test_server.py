"""The command from its first line to a signal, in this process."""

import io
import os
import re
import signal
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rich.console import Console  # noqa: E402

from infini_jax import cli  # noqa: E402
from infini_jax.config import InputError  # noqa: E402
from infini_jax.serve.server import listen  # noqa: E402
from tests.serve.models import write_run  # noqa: E402


class User(threading.Thread):
  """Waits for the address of the server, uses it, and sends this process a signal."""

  def __init__(self, said, number):
    super().__init__()
    self._said, self._number = said, number
    self._usual = signal.getsignal(number)
    self.found, self.error = {}, None

  def run(self):
    try:
      ends = time.monotonic() + 60
      while (at := re.search(r"http://\S+", self._said.getvalue())) is None:
        assert time.monotonic() < ends, self._said.getvalue()
        time.sleep(0.05)
      with httpx.Client(base_url=at[0], timeout=60) as client:
        self.found = self.use(client)
    except Exception as error:
      self.error = error
    if signal.getsignal(self._number) != self._usual:  # else the signal would end the tests
      os.kill(os.getpid(), self._number)

  def use(self, client):
    made = client.post("/v1/sessions", json={"text": "a line\n" * 9}).json()
    body = {"session": made["id"], "prompt": "b", "max_tokens": 3}
    return client.post("/v1/completions", json=body).json()


@pytest.fixture
def workdir(tmp_path):
  return write_run(tmp_path / "run")


def served(workdir, number, monkeypatch, *flags):
  """What a user found, what the command said, and its exit status."""
  said = io.StringIO()
  monkeypatch.setattr(cli, "make_console", lambda: Console(file=said, width=200))
  user = User(said, number)
  usual = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  user.start()
  status = cli.main(["serve", f"--workdir={workdir}", "--port=0", "--lanes=2", *flags])
  user.join(60)
  assert user.error is None and not user.is_alive(), user.error
  assert {n: signal.getsignal(n) for n in usual} == usual, "the host program has its handlers back"
  return user.found, said.getvalue(), status


def test_it_answers_until_a_signal_and_keeps_its_sessions(workdir, monkeypatch):
  found, said, status = served(workdir, signal.SIGTERM, monkeypatch)
  assert found["usage"]["completion_tokens"] <= 3 and found["choices"]
  assert status == 0 and "ended; 1 sessions are kept" in said
  assert "compiling for 2 lanes" in said and "there are no keys" not in said, "only this machine"
  _, said, status = served(workdir, signal.SIGINT, monkeypatch, "--host=0.0.0.0")
  assert status == 130 and "1 sessions; http://" in said, "the sessions are found again"
  assert "there are no keys (--keys): everybody who reaches this address uses it" in said


def test_an_address_that_is_taken_is_one_line():
  with listen("127.0.0.1", 0) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(InputError, match=f"--port={port}: Address already in use; choose another"):
      listen("127.0.0.1", port)
  with pytest.raises(InputError, match="--host=x+ --port=80: .*; choose another"):
    listen("x" * 70, 80)  # longer than a name may be
