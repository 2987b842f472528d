"""The counters of a server, for Prometheus; the only file that imports its client library."""

from collections.abc import Callable
from typing import Any

import jax
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as _text

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event of a compiled program
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
  """Counters of one server.

  Attributes:
    compiled: the number of programs that this process has compiled since the server was made.
  """

  def __init__(self) -> None:
    self._registry = CollectorRegistry()
    all_of: dict[str, Any] = {"registry": self._registry, "namespace": "infini_jax"}
    self._requests = Counter("requests", "Requests.", ["path", "status"], **all_of)
    self._read = Counter("read_tokens", "Tokens that were read.", **all_of)
    self._written = Counter("written_tokens", "Tokens that were written.", **all_of)
    seconds: dict[str, Any] = {"buckets": SECONDS, **all_of}
    self._chunk = Histogram("read_seconds", "Of one call that reads.", **seconds)
    self._step = Histogram("step_seconds", "Of one token in all lanes.", **seconds)
    self._first = Histogram("first_token_seconds", "From a request to a token.", **seconds)
    self._compiled = Counter("compiled_programs", "Programs that were compiled.", **all_of)
    self.compiled = 0
    jax.monitoring.register_event_duration_secs_listener(self._event)

  def close(self) -> None:
    """Ends the counting of compiled programs."""
    jax.monitoring.unregister_event_duration_listener(self._event)

  def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
    """Adds a value that is computed when the metrics are read."""
    gauge = Gauge(name, about, registry=self._registry, namespace="infini_jax")
    gauge.set_function(value)

  def request(self, path: str, status: int) -> None:
    """Counts a request, by its route."""
    self._requests.labels(path, str(status)).inc()

  def read(self, tokens: int, seconds: float) -> None:
    """Counts a call that reads."""
    self._read.inc(tokens)
    self._chunk.observe(seconds)

  def wrote(self, tokens: int, seconds: float) -> None:
    """Counts a step of all lanes."""
    self._written.inc(tokens)
    self._step.observe(seconds)

  def first(self, seconds: float) -> None:
    """Counts the time to the first token of a request."""
    self._first.observe(seconds)

  def text(self) -> bytes:
    """All counters in the format of Prometheus."""
    return _text(self._registry)

  def _event(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED:
      self.compiled += 1
      self._compiled.inc()
