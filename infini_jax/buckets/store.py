"""One bucket of an object store, with obstore; the only file that imports it."""

import contextlib
import datetime
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from infini_jax.config import InputError

CREDENTIALS = {
  "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
  "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
}
TRIES: Any = {"max_retries": 3, "retry_timeout": datetime.timedelta(seconds=20)}  # of a request
CLIENT: Any = {"connect_timeout": "5 seconds", "timeout": "10 minutes", "allow_http": True}
ABSENT = ("NoSuchBucket", "404 Not Found")
REFUSED = (
  *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "redential", "403 Forb"),
  "service account",  # the file of GOOGLE_APPLICATION_CREDENTIALS is missing or damaged
  "169.254.169.254",  # where machines in a cloud ask for credentials, if none are set
)
Given = TypeVar("Given")


class Bucket:
  """The objects whose names begin with `key`.

  Every request is tried again a few times, within `TRIES`.

  Args:
    url: SCHEME://BUCKET/KEY, for errors.
    scheme: s3 or gs.
    bucket: its name.
    key: the beginning of the names.

  Raises (each request):
    InputError: no such bucket, or access is refused.
    FileNotFoundError: no such object.
    OSError: the store does not answer.
  """

  def __init__(self, url: str, scheme: str, bucket: str, key: str):
    try:
      import obstore
    except ImportError:
      raise InputError(
        f"{url}: needs the package obstore: pip install 'infini-jax[objects]'"
      ) from None
    self._url, self._scheme, self._key, self._made = url, scheme, key, obstore
    try:
      self._store = obstore.store.from_url(
        f"{scheme}://{bucket}", client_options=CLIENT, retry_config=TRIES
      )
    except Exception as error:
      raise self._told(error) from None

  def key(self, name: str) -> str:
    """The whole name of an object; "" is `key` itself."""
    return f"{self._key}/{name}" if name else self._key

  def versions(self) -> dict[str, tuple[str, int]]:
    """The version and the size of every object, by the rest of its name after `key`."""
    try:
      pages = self._ask(lambda: [*self._made.list(self._store, f"{self._key}/")])
    except FileNotFoundError:
      raise InputError(f"{self._url}: no such bucket; make it, or correct its name") from None
    found = {}
    for info in (info for page in pages for info in page):
      name = info["path"][len(self._key) + 1 :]
      if not name or name.endswith("/"):
        continue  # what some tools write for a folder
      if {"", ".", ".."} & set(name.split("/")):
        raise InputError(f"{self._url}: has an object {name!r}, which cannot be a file; rename it")
      found[name] = _version(info), info["size"]
    if not found:
      with contextlib.suppress(FileNotFoundError):
        info = self._ask(lambda: self._made.head(self._store, self._key))
        found[""] = _version(info), info["size"]
    return found

  def read(self, name: str) -> bytes:
    """The content of an object."""
    return bytes(self._ask(lambda: self._made.get(self._store, self.key(name)).bytes()))

  def download(self, name: str, file: Path) -> None:
    """Writes the content of an object to a file."""

    def pieces() -> None:
      with file.open("wb") as opened:
        for piece in self._made.get(self._store, self.key(name)).stream():
          opened.write(piece)

    self._ask(pieces)

  def write(self, name: str, content: Path | bytes) -> str:
    """Writes an object, whole or not at all; returns its version."""
    return _version(self._ask(lambda: self._made.put(self._store, self.key(name), content)))

  def remove(self, name: str) -> None:
    """Removes an object, if it is there."""
    with contextlib.suppress(FileNotFoundError):
      self._ask(lambda: self._made.delete(self._store, self.key(name)))

  def _ask(self, request: Callable[[], Given]) -> Given:
    try:
      return request()
    except self._made.exceptions.BaseError as error:
      raise self._told(error) from error

  def _told(self, error: Exception) -> Exception:
    text = " ".join(str(error).partition("Debug source")[0].split())
    kind = type(error).__name__
    if kind == "NotFoundError" or any(word in text for word in ABSENT):
      return FileNotFoundError(errno.ENOENT, text[:300], self._url)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or any(w in text for w in REFUSED):
      return InputError(
        f"{self._url}: access is refused ({text[:200]}); set {CREDENTIALS[self._scheme]}"
      )
    return OSError(errno.ETIMEDOUT, f"the object store does not answer ({text[:200]})", self._url)


def _version(info: Any) -> str:
  """The version of an object, which changes with every write."""
  return str(info.get("e_tag") or info.get("version") or info.get("last_modified"))
