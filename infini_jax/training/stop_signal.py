"""How a training notices that it must stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from infini_jax import processes


class Stopped(Exception):
  """A signal came during a validation, or while the loop waits for data."""


class StopSignal:
  """Notes SIGINT and SIGTERM, so that the loop saves and stops. A second one ends the process."""

  NUMBERS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self) -> None:
    self._is_set = self._waits = self._listens = False
    self._here = threading.current_thread() is threading.main_thread()

  def is_set(self) -> bool:
    """Whether a signal came."""
    return self._is_set

  def __enter__(self) -> "StopSignal":
    if self._here:
      self._before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
      self._listens = True
    return self

  def __exit__(self, *error: Any) -> None:
    if self._here:
      for number, handler in self._before.items():
        signal.signal(number, handler)

  @contextlib.contextmanager
  def during_wait(self) -> Iterator[None]:
    """In the body a signal raises `Stopped`; not with other processes, which must agree first."""
    self._waits = not processes.joined()
    try:
      yield
    finally:
      self._waits = False

  def end_at_once(self) -> None:
    """Until `listen`, a SIGTERM ends the process, because a compilation cannot be interrupted."""
    if self._here and not self._is_set:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
      self._listens = False

  def listen(self) -> None:
    """From now on, a SIGTERM is noted again."""
    if self._here and not self._listens:
      signal.signal(signal.SIGTERM, self._note)
      self._listens = True

  def _note(self, number: int, frame: Any) -> None:
    self._is_set = True
    final = signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
    signal.signal(number, final)
    if self._waits:
      raise Stopped
