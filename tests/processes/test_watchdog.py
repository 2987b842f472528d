"""A process that ends without `farewell` leaves an error line."""

import signal
import socket
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from infini_jax.processes import watchdog
watchdog.seat("it was killed", *sys.argv[2:])
if sys.argv[1] == "farewell":
  watchdog.farewell()
if sys.argv[1] != "end":
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
  "how,status,said",
  [("end", 0, ""), ("farewell", -signal.SIGKILL, ""), ("kill", -signal.SIGKILL, "it was killed\n")],
)
def test_the_message_is_printed_only_without_a_farewell(how, status, said):
  done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.parametrize("listens", [True, False])
def test_it_looks_whether_process_0_still_listens(listens):
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    if listens:
      listener.listen()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-c", CODE, "kill", address, "process 0 is gone"]
    done = subprocess.run(command, capture_output=True, text=True)
  assert done.stderr == ("it was killed\n" if listens else "process 0 is gone\n")


def test_the_last_line_that_was_told_is_printed():
  told = CODE.replace("if sys", "for i in (1, 2): watchdog.tell(f'process {i} is gone')\nif sys", 1)
  for how, said in (("kill", "process 2 is gone\n"), ("farewell", "")):
    done = subprocess.run([sys.executable, "-c", told, how], capture_output=True, text=True)
    assert done.stderr == said
