"""Prevents log output of some libraries, and leaves the logging of the host program unchanged."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

NARRATORS = {"apache_beam", "etils", "grain", "orbax", "rouge_score", "tensorflow_datasets"}
LOGGERS = ("absl", "asyncio", "")  # the loggers that they use; they also raise every failure


class _NotTheirs(logging.Filter):
  """Blocks the records of `NARRATORS`, and of exceptions whose traceback goes through them."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the record passes."""
    files = [record.pathname]
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
      files.append(trace.tb_frame.f_code.co_filename)
      trace = trace.tb_next
    return not any(NARRATORS & {*Path(file).parts} for file in files)


def _is_late_answer(error: BaseException | None, trace: TracebackType | None) -> bool:
  """Whether a thread of a failed save or restore ends after that was given up.

  TensorStore then calls an event loop that Orbax has closed, and prints the traceback. The save or
  the restore itself has reported its failure.
  """
  if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
    return False
  while trace is not None:
    if "asyncio" not in Path(trace.tb_frame.f_code.co_filename).parts:
      return False
    trace = trace.tb_next
  return True


def ignore_late_answers() -> None:
  """Prevents the output of late answers until the process ends: for a command of its own.

  A thread may answer after the body of `quiet`, even while the process ends. The same holds for the
  other tasks of a failed restore: asyncio reports their failures when they are deleted.
  """
  logging.getLogger("asyncio").addFilter(_NotTheirs())
  before = sys.unraisablehook

  def hook(told: Any) -> None:
    if not _is_late_answer(told.exc_value, told.exc_traceback):
      before(told)

  sys.unraisablehook = hook


class _Quiet:
  """Installs the filters for the first user, and removes them after the last user."""

  def __init__(self) -> None:
    self._lock, self._users = threading.Lock(), 0
    self._hook = sys.unraisablehook
    self._filter, self._stand_in = _NotTheirs(), logging.lastResort or logging.NullHandler()

  def begin(self) -> None:
    """Adds a user."""
    with self._lock:
      self._users += 1
      if self._users > 1:
        return
      for name in LOGGERS:
        logging.getLogger(name).addFilter(self._filter)
      if not logging.root.handlers:
        logging.root.addHandler(self._stand_in)
      self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable

  def _unraisable(self, told: Any) -> None:
    if not _is_late_answer(told.exc_value, told.exc_traceback):
      self._hook(told)

  def end(self) -> None:
    """Removes a user."""
    with self._lock:
      self._users -= 1
      if self._users:
        return
      for name in LOGGERS:
        logging.getLogger(name).removeFilter(self._filter)
      if sys.unraisablehook == self._unraisable:
        sys.unraisablehook = self._hook
      logging.root.removeHandler(self._stand_in)


_quiet = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Blocks the log records of `NARRATORS` in its body. Other records are not affected.

  Without a handler at the root logger, absl would install one permanently at its first record. To
  prevent this, Python's fallback handler is installed for the time of the body.
  """
  _quiet.begin()
  try:
    yield
  finally:
    _quiet.end()
