"""How a training notices that it must stop, at any moment.

Python handles a signal between two of its own instructions, so never while XLA compiles. Therefore
a thread waits for the number of the signal, which the interpreter writes into a pipe at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPED = 75  # the exit status of a training that was stopped before its last step: EX_TEMPFAIL
LATEST = 8  # seconds until a process that ends at once has ended, whatever it still waits for
SAID = "told to stop while it starts or compiles; nothing is lost, and the same command continues"


class Stopped(Exception):
  """A signal came during a validation, or while the loop waits for data."""


def leave(status: int, message: str) -> None:
  """Ends this process, and leaves all threads behind."""
  print(f"infini-jax: {message}", file=sys.__stderr__, flush=True)
  sys.stdout.flush()
  os._exit(status)


class StopSignal:
  """Notes SIGINT and SIGTERM, so that the loop saves and stops. A second one ends the process.

  Until `listen`, and after `end_at_once`, a SIGTERM ends the process instead, with the status
  `STOPPED`: nothing is to be saved then. Outside of the main thread no signal is noticed.

  Args:
    end: ends the process; takes the status and a message.
  """

  NUMBERS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self, end: Callable[[int, str], Any] = leave) -> None:
    self.end = end
    self._is_set = self._waits = self._listens = False
    self._here = threading.current_thread() is threading.main_thread()
    self._before: dict[int, Any] = {}

  def is_set(self) -> bool:
    """Whether a signal came."""
    return self._is_set

  def __enter__(self) -> "StopSignal":
    if self._here:
      self._read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      self._handle(signal.SIGTERM)
      self._former = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
      threading.Thread(target=self._watch, name="stop", daemon=True).start()
    return self

  def __exit__(self, *error: Any) -> None:
    if self._here:
      signal.set_wakeup_fd(self._former)
      for number, handler in self._before.items():
        signal.signal(number, handler)
      os.close(self._write)  # ends the thread

  @contextlib.contextmanager
  def during_wait(self, alone: bool) -> Iterator[None]:
    """In the body a signal raises `Stopped` if this process is `alone`; others must agree first."""
    self._waits = alone
    try:
      yield
    finally:
      self._waits = False

  def end_at_once(self) -> None:
    """Until `listen`, a SIGTERM ends the process, because a compilation cannot be interrupted."""
    self._listens = self._is_set

  def listen(self) -> None:
    """From now on, SIGTERM and SIGINT are noted."""
    self._listens = True
    if self._here and signal.SIGINT not in self._before:
      self._handle(signal.SIGINT)

  def _handle(self, number: signal.Signals) -> None:
    self._before[number] = signal.signal(number, self._note)

  def _note(self, number: int, frame: Any) -> None:
    self._is_set = True
    if not self._listens and number == signal.SIGTERM:
      return  # the thread ends the process
    final = signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
    signal.signal(number, final)
    if self._waits:
      raise Stopped

  def _watch(self) -> None:
    """Ends the process when a SIGTERM comes that is not only to be noted."""
    with open(self._read, "rb", buffering=0) as pipe:
      while number := pipe.read(1):
        if number[0] == signal.SIGTERM and not self._listens:
          late = threading.Timer(LATEST, os._exit, (STOPPED,))
          late.daemon = True
          late.start()
          self.end(STOPPED, SAID)
