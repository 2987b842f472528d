"""What threads of libraries print late stays out of a command's one line."""

import subprocess
import sys

import pytest

# A thread in C, as TensorStore's, calls Python after the command has ended.
LATE = """
import asyncio, ctypes, functools, threading, time
from infini_jax import cli

loop = asyncio.new_event_loop()
loop.close()
answer = ctypes.CFUNCTYPE(None)(functools.partial({call}))

def late():
  time.sleep(0.5)
  answer()

def main(argv, alone):
  threading.Thread(target=late).start()
  return 2

cli.main = main
cli.program([])
"""


@pytest.mark.parametrize(
  "call,said", [("loop.call_soon_threadsafe, print", ""), ("int, 'x'", "'x'")]
)
def test_only_the_answer_to_a_closed_loop_is_not_printed(call, said):
  command = [sys.executable, "-c", LATE.format(call=call)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert done.returncode == 2
  assert (said in done.stderr) if said else not done.stderr, done.stderr
