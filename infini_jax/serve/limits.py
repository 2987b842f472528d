"""The limits of one server."""

import dataclasses

from infini_jax.config import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits; a request above one of them is refused with an error that names it.

  Raises:
    InputError: a value is out of its range.
  """

  lanes: int = 8  # sessions that write at the same time
  requests: int = 64  # requests that run or wait at the same time
  sessions: int = 1000  # sessions that are kept
  in_memory: int = 32  # sessions whose states are in memory; the others are on disk alone
  body_mb: int = 64  # megabytes of a request
  tokens: int = 4096  # tokens that one request may write
  seconds: float = 3600.0  # how long a request may take, with its waiting
  send_seconds: float = 60.0  # how long a client may take to send a request

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      least = 1 if isinstance(value, int) else 0.1
      if not least <= value <= 2**31:
        raise InputError(f"--{name.replace('_', '-')}={value}: must be at least {least}")
