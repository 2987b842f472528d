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
from typing import Any

import numpy as np

LOGGER = logging.getLogger("infini_jax")
EACH = 10  # seconds between two writes
KEPT = 100_000  # the most events that wait for a disk; the oldest are lost first


class TensorBoard:
  """Writes events to files in a folder.

  Args:
    folder: where TensorBoard looks; it is made if it does not exist.
    first: the first step that is written. TensorBoard drops what an earlier process wrote of this
      step and later ones.
  """

  def __init__(self, folder: Path, first: int):
    from tensorboardX import event_file_writer, summary  # here, for it changes the environment
    from tensorboardX.proto import event_pb2

    self._summary, self._event = summary, event_pb2.Event
    self._writer = event_file_writer.EventsWriter
    self._file: Any = None
    self._folder, self._numbers = folder, itertools.count()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._events = [self._event(step=first, session_log=start)]
    self._next, self._told = 0.0, False

  def text(self, name: str, text: str, step: int) -> None:
    """Adds a text in Markdown."""
    self._add(self._event(summary=self._summary.text(name, text), step=step))

  def scalar(self, name: str, value: float, step: int) -> None:
    """Adds a point of a curve."""
    self._add(self._event(summary=self._summary.scalar(name, value), step=step))

  def histogram(self, name: str, values: Sequence[float], step: int) -> None:
    """Adds a histogram of numbers."""
    made = self._summary.histogram(name, np.asarray(values, np.float64), bins="auto")
    self._add(self._event(summary=made, step=step))

  def close(self) -> None:
    """Writes the waiting events, if the disk is not full."""
    self._write()
    self._end()

  def _add(self, event: Any) -> None:
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
        self._file = self._writer(str(self._folder / "events"), suffix)
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
