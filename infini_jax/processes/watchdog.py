"""A process beside this one, which has a word to say when this one is gone without a farewell."""

import atexit
import contextlib
import subprocess
import sys

# JAX ends a process that has lost its peers with a stack trace, past anything Python could do. This
# little process outlives it: it speaks when its pipe closes without the farewell.
SITTER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
if not os.read(0, 1):
  os.write(2, sys.argv[1].encode())
"""

_sitter: subprocess.Popen | None = None


def seat(message: str) -> None:
  """Starts it.

  Args:
    message: for standard error, should this process end without `farewell`.
  """
  global _sitter
  command = [sys.executable, "-S", "-E", "-c", SITTER, message]
  _sitter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(farewell)


def farewell() -> None:
  """Sends it away in silence; also when this process ends as it should."""
  if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
    with contextlib.suppress(OSError):
      _sitter.communicate(b".")
