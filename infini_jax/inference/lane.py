"""The counts and tokens of one lane of a session."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from infini_jax.inference.sampling import RECENT


class Lane:
  """How much of a text the model has read, its unread tokens, and its last tokens."""

  def __init__(self) -> None:
    self.read = 0  # tokens that the model has read
    self.unread: list[int] = []
    self.open: list[int] | None = []  # tokens read since the last segment border; None: not known
    self.recent: deque[int] = deque(maxlen=RECENT)

  @property
  def position(self) -> int:
    """The number of tokens of the text so far."""
    return self.read + len(self.unread)

  def ended(self, eos: int) -> bool:
    """Whether the model has ended this text: the last token is a generated `eos`."""
    return self.position > 1 and self.unread[-1:] == [eos]

  def take(self, tokens: Sequence[int]) -> None:
    """Adds tokens, unread at first."""
    self.unread.extend(tokens)
    self.recent.extend(tokens)

  def give(self, size: int, segment: int) -> list[int]:
    """The next tokens for the model, at most `size`; they count as read.

    Args:
      size: up to the end of the open segment, or whole segments from a border on.
      segment: N.
    """
    given, self.unread = self.unread[:size], self.unread[size:]
    self.read += len(given)
    if self.read % segment == 0:
      self.open = []
    elif self.open is not None:
      self.open += given
    return given

  def copy(self) -> "Lane":
    """An independent copy."""
    other = Lane()
    other.read, other.unread, other.recent = self.read, self.unread.copy(), self.recent.copy()
    other.open = None if self.open is None else self.open.copy()
    return other


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Delays Ctrl-C to the end of the body, so that the lanes count exactly what the model read."""
  usual = signal.getsignal(signal.SIGINT)
  if not callable(usual) or threading.current_thread() is not threading.main_thread():
    yield
    return
  came: list[Any] = []
  signal.signal(signal.SIGINT, lambda *event: came.append(event))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, usual)
    if came:
      usual(*came[0])
