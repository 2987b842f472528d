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


# A restore fails at its first part. The tasks of the other parts are deleted when the process ends.
UNRETRIEVED = """
import asyncio
from infini_jax import cli

namespace = dict()
source = "async def part(): raise ValueError('lost')"
exec(compile(source, {file!r}, "exec"), namespace)
loop = asyncio.new_event_loop()
kept = []

def main(argv, alone):
  kept.append(loop.create_task(namespace["part"]()))
  loop.run_until_complete(asyncio.sleep(0.1))
  return 2

cli.main = main
cli.program([])
"""


@pytest.mark.parametrize("file,said", [("/lib/orbax/parts.py", ""), ("/lib/mine.py", "lost")])
def test_only_the_failures_of_other_parts_of_a_restore_are_not_printed(file, said):
  command = [sys.executable, "-c", UNRETRIEVED.format(file=file)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert done.returncode == 2
  assert (said in done.stderr) if said else not done.stderr, done.stderr
