"""One text of a session, in numbers."""

from collections import deque
from collections.abc import Sequence

from infini_jax.inference.sampling import RECENT


class Lane:
  """How much of a text the model has read, what waits, and the last tokens of all."""

  def __init__(self) -> None:
    self.read = 0  # tokens that the stream holds
    self.unread: list[int] = []
    self.recent: deque[int] = deque(maxlen=RECENT)

  @property
  def position(self) -> int:
    """Tokens of the text so far."""
    return self.read + len(self.unread)

  def ended(self, eos: int) -> bool:
    """Whether the model has ended this text: `eos` was written behind something, and never read."""
    return self.position > 1 and self.unread[-1:] == [eos]

  def take(self, tokens: Sequence[int]) -> None:
    """More text, at first unread."""
    self.unread.extend(tokens)
    self.recent.extend(tokens)

  def give(self, size: int) -> list[int]:
    """The next tokens for the model, at most so many; they count as read."""
    given, self.unread = self.unread[:size], self.unread[size:]
    self.read += len(given)
    return given

  def copy(self) -> "Lane":
    """Another that is as far."""
    other = Lane()
    other.read, other.unread, other.recent = self.read, self.unread.copy(), self.recent.copy()
    return other
