"""Keeps libraries from narrating, and the logging of the program around them as it was."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

NARRATORS = {"etils", "grain", "orbax", "rouge_score", "tensorflow_datasets"}
LOGGERS = ("absl", "asyncio", "")  # through which they speak; what fails they raise, too


class _NotTheirs(logging.Filter):
  """Lets all records pass but those of the narrators, and of what failed inside of them."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the record passes."""
    files = [record.pathname]
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
      files.append(trace.tb_frame.f_code.co_filename)
      trace = trace.tb_next
    return not any(NARRATORS & {*Path(file).parts} for file in files)


class _Quiet:
  """What is installed while anybody wants quiet, and taken away with the last of them."""

  def __init__(self) -> None:
    self._lock, self._users = threading.Lock(), 0
    self._filter, self._stand_in = _NotTheirs(), logging.lastResort or logging.NullHandler()

  def begin(self) -> None:
    """One more wants quiet."""
    with self._lock:
      self._users += 1
      if self._users > 1:
        return
      for name in LOGGERS:
        logging.getLogger(name).addFilter(self._filter)
      if not logging.root.handlers:
        logging.root.addHandler(self._stand_in)

  def end(self) -> None:
    """One does not any more."""
    with self._lock:
      self._users -= 1
      if self._users:
        return
      for name in LOGGERS:
        logging.getLogger(name).removeFilter(self._filter)
      logging.root.removeHandler(self._stand_in)


_quiet = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """The narrators are silent while this lasts; every other record goes where it always went.

  Where no handler is installed, absl would install one for good with its first record: what Python
  itself falls back on then stands in for it meanwhile.
  """
  _quiet.begin()
  try:
    yield
  finally:
    _quiet.end()
