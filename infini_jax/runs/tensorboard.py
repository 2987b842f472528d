"""Curves for TensorBoard; the only file that imports tensorboardX.

The writer of tensorboardX has a thread, which a full disk ends. Then its queue fills, and the
training waits forever. Here events are written by the thread that makes them, and an event that the
disk does not take is kept.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

LOGGER = logging.getLogger("infini_jax")
EACH = 10  # seconds between two writes
KEPT = 100_000  # the most events that wait for a disk; the oldest are lost first


class TensorBoard:
  """Writes events to files in a folder.

  Args:
    folder: where TensorBoard looks; it is made if it does not exist.
    first: the first step that is written. TensorBoard forgets what an earlier process wrote of this
      step and later ones.
  """

  def __init__(self, folder: Path, first: int):
    self._folder, self._numbers = folder, itertools.count()
    self._file: EventsWriter | None = None
    self._events = [Event(step=first, session_log=SessionLog(status=SessionLog.START))]
    self._next, self._told = 0.0, False

  def text(self, name: str, text: str, step: int) -> None:
    """Adds a text in Markdown."""
    self._add(Event(summary=summary.text(name, text), step=step))

  def scalar(self, name: str, value: float, step: int) -> None:
    """Adds a point of a curve."""
    self._add(Event(summary=summary.scalar(name, value), step=step))

  def histogram(self, name: str, values: Sequence[float], step: int) -> None:
    """Adds a histogram of numbers."""
    made = summary.histogram(name, np.asarray(values, np.float64), bins="auto")
    self._add(Event(summary=made, step=step))

  def close(self) -> None:
    """Writes what waits, if the disk takes it."""
    self._write()
    self._end()

  def _add(self, event: Event) -> None:
    event.wall_time = time.time()
    self._events.append(event)
    del self._events[:-KEPT]
    if event.wall_time >= self._next:
      self._write()
      self._next = time.time() + EACH

  def _write(self) -> None:
    """Writes all events that wait, to a new file after a failure."""
    try:
      if self._file is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}.{next(self._numbers)}"
        self._file = EventsWriter(str(self._folder / "events"), suffix)
      for event in self._events:
        self._file.write_event(event)
      self._file.flush()
    except OSError as error:
      if not self._told:
        LOGGER.warning(
          f"warning: {self._folder}: cannot be written ({error.strerror}); its curves are kept "
          f"until there is room"
        )
      self._told = True
      self._end()
    else:
      self._events, self._told = [], False

  def _end(self) -> None:
    if self._file is not None:
      with contextlib.suppress(OSError):
        self._file.close()
      self._file = None
