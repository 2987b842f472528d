"""Folders and files of object stores (s3:// and gs://), each with a copy on this machine.

The package reads and writes the copy. `fetch` brings what the store has; `keep` does so too, and
from then on a thread brings what is written to the store. `flush` waits until the store has all of
it. So a checkpoint, a store or a state is whole in the copy before the store has it.

A manifest is written after the files of each pass, and files that were removed are deleted after
it. A reader takes only the files that the manifest names: the store never shows half a checkpoint.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from infini_jax.buckets.copy import Copy
from infini_jax.config import InputError

__all__ = ["fetch", "flush", "is_url", "keep"]

LOGGER = logging.getLogger("infini_jax")
URL = re.compile(r"(s3|gs)://")
PAUSES = (1, 2, 4, 8, 15, 30, 60)  # seconds before the next try, while a store does not answer
_copies: dict[str, Copy] = {}
_lock = threading.Lock()


def is_url(path: str | os.PathLike[str]) -> bool:
  """Whether a path names an object store."""
  return URL.match(os.fspath(path)) is not None


def fetch(url: str, pattern: str = "") -> Path:
  """The copy of a folder or a file, updated from the store. Each process does this once for a URL.

  Args:
    url: s3://BUCKET/NAME or gs://BUCKET/NAME.
    pattern: only objects whose names in the folder match it, as `fnmatch` does.

  Returns:
    The path of the copy; nothing is there if the store has nothing of this name.

  Raises:
    InputError: no such bucket, no credentials, obstore is missing, not a possible name, or the
      copy and the store have both changed.
    OSError: the store does not answer.
  """
  return _copy(url, pattern)[1]


def keep(url: str) -> Path:
  """As `fetch`; from now on, changes of the copy are uploaded to the store; see `flush`."""
  copy, path = _copy(url)
  if not copy.is_kept:
    copy.is_kept = True
    threading.Thread(target=copy.follow, name=f"copy of {copy.url}", daemon=True).start()
  return path


def flush() -> None:
  """Returns after everything that this process wrote is in the stores.

  Raises:
    InputError: another machine writes there too.
    OSError: a store does not answer.
  """
  for copy in [*_copies.values()]:
    if copy.is_kept:
      _patiently(copy.url, copy.push)


def _copy(url: str, pattern: str = "") -> tuple[Copy, Path]:
  """The copy of this URL, and the path in it. The copy of a folder is used for all names in it."""
  url = url.rstrip("/")
  with _lock:
    for known, copy in _copies.items():
      if f"{url}/".startswith(f"{known}/"):
        return copy, copy.path / url[len(known) + 1 :]
    copy = Copy(url)
    _patiently(url, lambda: copy.bring(pattern))
    if not pattern:
      _copies[url] = copy
    return copy, copy.path


def _patiently(url: str, request: Callable[[], None]) -> None:
  """Tries again while the store does not answer."""
  for pause in (*PAUSES, None):
    try:
      return request()
    except InputError:
      raise
    except OSError as error:
      if pause is None:
        raise
      LOGGER.warning(f"warning: {url}: {error.strerror or error}; next try in {pause} s")
      time.sleep(pause)
