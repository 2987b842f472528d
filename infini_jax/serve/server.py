"""The server process; the only file that imports uvicorn."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from infini_jax.config import InputError

HEADERS = 32_768  # the most bytes of the headers of a request
IDLE_SECONDS = 10.0  # how long a connection may wait before its next request is complete
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
  """A socket that waits for connections; port 0 takes any.

  Raises:
    InputError: there is no such address here, or another program uses the port.
  """
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=512)
  except (OSError, UnicodeError, OverflowError) as error:
    reason = getattr(error, "strerror", None) or str(error)
    reason = reason.partition(" (while")[0]  # the address is in the line already
    raise InputError(f"--host={host} --port={port}: {reason}; choose another") from None


class Server(uvicorn.Server):
  """A server that SIGTERM or Ctrl-C ends cleanly.

  It then takes no new requests. Those that run may take `grace` seconds more. Then `stop` ends
  them. A second signal ends them at once.

  Attributes:
    signal: the first signal that came; None: none.
  """

  def __init__(self, app: Any, stop: Callable[[], None], grace: float):
    super().__init__(
      uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS,
        timeout_keep_alive=int(IDLE_SECONDS),
      )
    )
    self._stop, self._grace = stop, grace
    self.signal: int | None = None

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """In the body, signals end the server; the process continues."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    usual = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
    try:
      yield
    finally:
      for number, handler in usual.items():
        signal.signal(number, handler)

  def handle_exit(self, sig: int, frame: Any) -> None:
    """Begins to end."""
    first = self.signal is None
    self.signal = sig if first else self.signal
    self.should_exit = True
    late = threading.Timer(self._grace if first else 0.0, self._stop)
    late.daemon = True
    late.start()


class Patient(H11Protocol):
  """A connection that is closed if a request is not complete in time."""

  _late: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    """Begins to wait."""
    super().connection_made(transport)
    self._wait()

  def data_received(self, data: bytes) -> None:
    """Stops waiting when a request has come."""
    super().data_received(data)
    if self.cycle is not None and not self.cycle.response_complete and self._late is not None:
      self._late.cancel()
      self._late = None

  def on_response_complete(self) -> None:
    """Waits for the next request."""
    super().on_response_complete()
    self._wait()

  def connection_lost(self, exc: Exception | None) -> None:
    """Ends."""
    if self._late is not None:
      self._late.cancel()
    super().connection_lost(exc)

  def _wait(self) -> None:
    if self._late is not None:
      self._late.cancel()
    self._late = self.loop.call_later(IDLE_SECONDS, self._close)

  def _close(self) -> None:
    if self.cycle is None or self.cycle.response_complete:
      self.transport.close()
