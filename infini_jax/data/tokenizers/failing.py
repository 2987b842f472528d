"""Calls of libraries written in other languages: each failure becomes an error of one line."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

from infini_jax.config import InputError


@contextlib.contextmanager
def one_line(what: str, remedy: str) -> Iterator[None]:
  """Converts every error of the body to an InputError: WHAT (the reason); REMEDY.

  A Rust panic is not an `Exception`. A worker cannot send it to its parent process, and Rust writes
  many lines about it to standard error before Python receives it.
  """
  try:
    with _stderr_held():
      yield
  except BaseException as error:
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    reason = " ".join(str(error).split())[:300]
    raise InputError(f"{what} ({reason}); {remedy}") from None


@contextlib.contextmanager
def _stderr_held() -> Iterator[None]:
  """Delays output to standard error until the body ends, and removes the report of a Rust panic.

  It acts in the main thread only: two threads that replace the same descriptor would lose it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      kept = os.dup(2)
    except OSError:  # standard error is closed: there is no output to delay
      yield
      return
    stack.callback(os.close, kept)
    held = _held()
    os.dup2(held, 2)
    try:
      yield
    finally:
      os.dup2(kept, 2)
      if size := os.fstat(held).st_size:
        said = os.pread(held, size, 0)
        os.truncate(held, 0)
        os.lseek(held, 0, os.SEEK_SET)
        os.write(2, said.partition(b"\nthread '")[0])


_file: tuple[int, int] = (0, 0)  # the process that opened the file, and its descriptor


def _held() -> int:
  """The descriptor of a file without a name, opened once in each process."""
  global _file
  if _file[0] != os.getpid():
    with tempfile.TemporaryFile() as file:
      _file = os.getpid(), os.dup(file.fileno())
  return _file[1]
