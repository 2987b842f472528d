"""A process that ends without `farewell` leaves an error line."""

import signal
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from infini_jax.processes import watchdog
watchdog.seat("it was killed\\n")
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
