"""Detects which other processes do not answer, so that the last line of a run names them.

JAX's own service notices it too, but then ends every process with a stack trace, from a thread that
Python cannot catch. Here each process gives a sign of life every second, and process 0 publishes
whose are missing. `watchdog` prints this as the last line. JAX alone decides when a process is
lost, because its signs of life continue while Python waits for a long call.
"""

import atexit
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator

import jax

from infini_jax.processes import watchdog
from infini_jax.processes.ending import STOPPED, give_up
from infini_jax.processes.service import (
  client,
  first_line,
  in_thread,
  process_count,
  process_index,
)

BEAT = 1.0  # seconds between two signs of life
SILENT = 4.0  # seconds without one after which a process counts as missing
GRACE = 2.0  # seconds in which a process ends by itself after another one has given its reason
SIGNS, MISSING = "sign-of-life", "missing"  # folders of keys in the coordination service
AGAIN = "Start all of them with the same command: a run continues from its newest checkpoint"


class Signs:
  """When each process last gave a sign of life, by this process's clock."""

  def __init__(self, count: int, now: float):
    self._seen = dict.fromkeys(range(count), (-1, now))

  def take(self, numbers: dict[int, int], now: float) -> list[int]:
    """Takes the newest number of each process; returns the processes that are missing."""
    for process, number in numbers.items():
      if number != self._seen[process][0]:
        self._seen[process] = number, now
    return [process for process, (_, since) in self._seen.items() if now - since > SILENT]


class Presence:
  """A thread that gives signs of life, and looks for those of the others.

  Args:
    on_change: takes the processes that are missing, when they are others than before.
  """

  def __init__(self, on_change: Callable[[list[int]], None]):
    self.missing: list[int] = []
    self._on_change = on_change  # is called with the processes that are missing now
    self._end, self._number = threading.Event(), 0
    self._signs = Signs(process_count(), time.monotonic())
    self._ending_since: float | None = None
    self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

  def start(self) -> None:
    """Starts the thread. It ends before JAX leaves its service."""
    self._thread.start()
    atexit.register(self.stop)

  def stop(self) -> None:
    """Ends the thread."""
    self._end.set()
    self._thread.join(SILENT)

  def wait(self, seconds: float) -> list[int]:
    """The processes that are missing, as soon as there are any, at the latest after `seconds`."""
    end = time.monotonic() + seconds
    while not self.missing and time.monotonic() < end:
      time.sleep(BEAT / 4)
    return self.missing

  def _run(self) -> None:
    while not self._end.wait(BEAT):
      call = in_thread(self._beat, SILENT)
      if not call.done():
        self._know([0])  # the service is in process 0
        while not call.done() and not self._end.wait(BEAT):
          pass
      elif isinstance(call.exception(), jax.errors.JaxRuntimeError):
        self._know([0])
      elif call.exception() is None:
        self._know(call.result())

  def _know(self, missing: list[int]) -> None:
    if missing != self.missing and not self._end.is_set():
      self.missing = missing
      self._on_change(missing)

  def _beat(self) -> list[int]:
    """Gives a sign of life; returns who is missing. Ends this process if another one has ended."""
    service, me = client(), process_index()
    if service is None:  # JAX has left its service
      return self.missing
    self._number += 1
    service.key_value_set(f"{SIGNS}/{me}", str(self._number), allow_overwrite=True)
    if me == 0:
      found = service.key_value_dir_get(SIGNS)
      numbers = {int(key.rpartition("/")[2]): int(value) for key, value in found}
      missing = self._signs.take(numbers, time.monotonic())
      if missing != self.missing or self._number == 1:
        service.key_value_set(f"{MISSING}/now", json.dumps(missing), allow_overwrite=True)
    else:
      said = [value for _, value in service.key_value_dir_get(MISSING)]
      missing = json.loads(said[0]) if said else []
    if ended := service.key_value_dir_get(STOPPED):
      self._follow(*json.loads(ended[0][1]))
    return missing

  def _follow(self, process: int, status: int, why: str) -> None:
    """Ends this process as another one did, if it does not do so by itself: it may be computing."""
    now = time.monotonic()
    self._ending_since = self._ending_since or now
    if now - self._ending_since > GRACE:
      give_up(status, f"process {process} stopped: {why}", together=False)


_presence: Presence | None = None


def watch() -> None:
  """Starts the thread of this process, once it has joined the others."""
  global _presence
  me = f"process {process_index()} of {process_count()}"
  _presence = Presence(lambda missing: watchdog.tell(last_words(me, missing)))
  _presence.start()


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Ends this process at once if the devices report that another process is gone.

  A normal exit would wait for the process that is gone.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if client() is None:
      raise
    missing = _presence.wait(2 * SILENT) if _presence else []
    what = f"{named(missing)} ({first_line(error)})" if missing else first_line(error)
    me = f"process {process_index()} of {process_count()}"
    why = "" if 0 in missing else named(missing)  # without process 0 there is no service to tell
    give_up(1, f"{me} ends: {what}. {AGAIN}", together=False, why=why)


def last_words(me: str, missing: list[int]) -> str:
  """The line about a process that JAX, or a signal, has ended.

  Args:
    me: the name of the process.
    missing: the processes that did not answer.
  """
  if missing:
    return f"infini-jax: {me} ends: {named(missing)}. {AGAIN}"
  return (
    f"infini-jax: {me} was killed, or lost the others, or never found them (see above). {AGAIN}"
  )


def named(missing: list[int]) -> str:
  """What is known of the others, for a line: `process 1 does not answer`."""
  if not missing:
    return ""
  if len(missing) == 1:
    return f"process {missing[0]} does not answer"
  return f"processes {', '.join(map(str, missing))} do not answer"
