"""A second process that prints a message if this process ends without calling `farewell`."""

import atexit
import contextlib
import subprocess
import sys

# JAX aborts a process that has lost its peers with a stack trace, and Python cannot prevent it. The
# second process outlives it: it prints the message if its pipe closes without a byte.
SITTER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
if not os.read(0, 1):
  os.write(2, sys.argv[1].encode())
"""

_sitter: subprocess.Popen | None = None


def seat(message: str) -> None:
  """Starts the second process.

  Args:
    message: for standard error, if this process ends without `farewell`.
  """
  global _sitter
  command = [sys.executable, "-S", "-E", "-c", SITTER, message]
  _sitter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(farewell)


def farewell() -> None:
  """Ends the second process without a message. Runs also at a normal exit."""
  if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
    with contextlib.suppress(OSError):
      _sitter.communicate(b".")
