"""A second process that prints a line if this process ends without calling `farewell`."""

import atexit
import contextlib
import subprocess
import sys
import threading

# JAX aborts a process that has lost its peers with a stack trace, and Python cannot prevent it. The
# second process outlives it. It reads lines until its pipe closes, and prints the last one, unless
# that is the farewell. Without a line, it checks whether process 0 still listens.
SITTER = """
import os, signal, socket, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
line, address, gone = sys.argv[1:]
said = b""
while some := os.read(0, 65536):
  said += some
last = said.decode().splitlines()[-1:]
if last == ["."]:
  sys.exit()
if last:
  line = last[0]
elif address:
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), 2).close()
  except OSError:
    line = gone
os.write(2, line.encode() + b"\\n")
"""

_sitter: subprocess.Popen | None = None
_writes = threading.Lock()


def seat(line: str, address: str = "", gone: str = "") -> None:
  """Starts the second process.

  Args:
    line: for standard error, if this process ends without `farewell`.
    address: HOST:PORT that another process listens at.
    gone: the line if it does not any more.
  """
  global _sitter
  command = [sys.executable, "-S", "-E", "-c", SITTER, line, address, gone]
  _sitter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(farewell)


def tell(line: str) -> None:
  """Replaces the line."""
  with _writes, contextlib.suppress(OSError):
    if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
      _sitter.stdin.write(line.encode() + b"\n")
      _sitter.stdin.flush()


def farewell() -> None:
  """Ends the second process without a line. Runs also at a normal exit."""
  with _writes, contextlib.suppress(OSError):
    if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
      _sitter.communicate(b".\n")
