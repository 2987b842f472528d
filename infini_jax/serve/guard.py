"""The checks of every request: its owner, its size, its duration, the number of requests."""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infini_jax.config import InputError
from infini_jax.serve.errors import ApiError
from infini_jax.serve.limits import Limits
from infini_jax.serve.metrics import Metrics

API = ("/v1/", "/report")  # what needs a key; the page itself contains no data of a user
LOCAL = ("localhost", "127.0.0.1", "::1")
SHORTEST_KEY = 16
UNREAD = (408, 413)  # after these, the rest of the body is not read
CLOSE = (b"connection", b"close")
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Keys:
  """The keys of a server. Without keys, all requests have the same owner.

  Raises:
    InputError: there is no such file, or a key is too short.
  """

  def __init__(self, keys: Sequence[str] = ()):
    for number, key in enumerate(keys, 1):
      if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise InputError(
          f"--keys: key {number} is not a text of at least {SHORTEST_KEY} ASCII characters; for "
          f"example {secrets.token_urlsafe(24)}"
        )
    self._digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]

  def __bool__(self) -> bool:
    return bool(self._digests)

  @classmethod
  def of_file(cls, file: Path) -> "Keys":
    """One key a line; empty lines and lines with # are left out."""
    try:
      lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
      reason = getattr(error, "strerror", None) or "not UTF-8 text"
      raise InputError(f"--keys={file}: {reason}; give a file with one key a line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
      raise InputError(f"--keys={file}: holds no key; write one a line, or leave --keys out")
    return cls(keys)

  def owner(self, header: str | None) -> str:
    """The owner of a request, from its header Authorization: a short hash of the key.

    Raises:
      ApiError: no key, or a wrong one.
    """
    if not self._digests:
      return ""
    kind, _, key = (header or "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
      raise ApiError(401, "no key: send the header Authorization: Bearer KEY", "no_key")
    digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).hexdigest()
    known = [hmac.compare_digest(digest, one) for one in self._digests]
    if not any(known):
      raise ApiError(401, "the key is wrong", "invalid_api_key")
    return digest[:32]


class Guard:
  """An ASGI middleware.

  A page of another site must not use a server of this machine through the user's browser. Its
  requests name another site as origin. With an invented name for this machine, that is the host.

  Args:
    app: what is guarded.
    keys: who may use it.
    limits: how much it takes.
    metrics: counts the requests.
    hosts: names of this server; empty: any.
  """

  def __init__(
    self, app: Any, keys: Keys, limits: Limits, metrics: Metrics, hosts: Sequence[str] = LOCAL
  ):
    self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
    self._hosts, self._running = tuple(hosts), 0

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Handles a request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    status = 500

    async def answer(message: Any) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
        more = (*HEADERS, *((CLOSE,) if status in UNREAD else ()))
        message = {**message, "headers": [*message.get("headers", ()), *more]}
      await send(message)

    counts = scope["path"].startswith(API)
    self._running += counts
    try:
      self._check(scope)
      await self._app(scope, Body(scope, receive, self._limits), answer)
    except ApiError as error:
      await refuse(answer, error)
    finally:
      self._running -= counts
      endpoint = getattr(scope.get("endpoint"), "__name__", "none")
      self._metrics.request(endpoint, status)

  def _check(self, scope: Any) -> None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("host", "")
    if self._hosts and _name(host) not in self._hosts:
      raise ApiError(403, f"{host[:80]!r} is not a name of this server (--host)", "wrong_host")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
      raise ApiError(403, "the request comes from a page of another site", "wrong_origin")
    scope.setdefault("state", {})["owner"] = ""
    if scope["path"].startswith(API):
      scope["state"]["owner"] = self._keys.owner(headers.get("authorization"))
      if self._running > self._limits.requests:
        raise ApiError(
          429,
          f"{self._limits.requests} requests run or wait (--requests); ask again later",
          "too_many_requests",
        )


class Body:
  """The `receive` of a request, with limits on the size of the body and on its time."""

  def __init__(self, scope: Any, receive: Any, limits: Limits):
    self._receive, self._limits, self._read = receive, limits, 0
    self._ends, self._complete = time.monotonic() + limits.send_seconds, False
    sizes = [value for name, value in scope["headers"] if name == b"content-length"]
    self._size = int(sizes[0]) if sizes and sizes[0].isdigit() else 0

  async def __call__(self) -> Any:
    """The next message.

    Raises:
      ApiError: the body is too large or too slow.
    """
    if self._complete:
      return await self._receive()
    most = self._limits.body_mb * 1_000_000
    if max(self._size, self._read) > most:
      raise ApiError(
        413, f"the body has more than {self._limits.body_mb} MB (--body-mb)", "body_too_large"
      )
    try:
      message = await asyncio.wait_for(self._receive(), max(0.0, self._ends - time.monotonic()))
    except TimeoutError:
      seconds = self._limits.send_seconds
      raise ApiError(408, f"the request did not come in {seconds:g} s", "too_slow") from None
    self._read += len(message.get("body", b""))
    self._complete = not message.get("more_body", False)
    if self._read > most:
      return await self()
    return message


async def refuse(send: Any, error: ApiError) -> None:
  """Sends an error."""
  content = json.dumps(error.body()).encode()
  headers = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(content)).encode()),
  ]
  if error.status == 401:
    headers.append((b"www-authenticate", b"Bearer"))
  await send({"type": "http.response.start", "status": error.status, "headers": headers})
  await send({"type": "http.response.body", "body": content})


def _name(host: str) -> str:
  """The name in a header Host, without its port."""
  try:
    return urlsplit(f"//{host}").hostname or ""
  except ValueError:
    return ""
