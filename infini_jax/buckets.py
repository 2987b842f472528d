"""Folders and files of object stores (s3:// and gs://), each with a copy on this machine.

The package reads and writes the copy. `fetch` brings what the store has; `keep` does so too, and
from then on a thread brings every change of the copy to the store. `flush` waits until the store
has all of them. So a checkpoint, a store or a state is whole in the copy before the store has it.

A manifest is written after the files of each pass, and files that were removed are deleted after
it. A reader takes only the files that the manifest names: the store never shows half a checkpoint.
The requests are those of fsspec with s3fs or gcsfs, which also find the credentials.
"""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from infini_jax.config import InputError
from infini_jax.files import atomic, is_temporary, write_json
from infini_jax.progress import make_console, track

LOGGER = logging.getLogger("infini_jax")
URL = re.compile(r"(s3|gs)://")
PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # and the extra that installs it
MANIFEST = ".infini_jax.json"
UNFINISHED = "orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
EACH = 10.0  # seconds between two passes
PAUSES = (1, 2, 4, 8, 15, 30, 60)  # seconds before the next try, while a store does not answer
NOTHING = [0, 0]  # size and time of a file that is not there yet
Given = TypeVar("Given")


class Gone(Exception):
  """A file of the copy was removed during a pass."""


def is_url(path: str | os.PathLike[str]) -> bool:
  """Whether a path names an object store."""
  return URL.match(os.fspath(path)) is not None


def fetch(url: str, pattern: str = "") -> Path:
  """The copy of a folder or a file, with what the store has now. Once for each URL of a process.

  Args:
    url: s3://BUCKET/NAME or gs://BUCKET/NAME.
    pattern: only objects whose names in the folder match it, as `fnmatch` does.

  Returns:
    The path of the copy; nothing is there if the store has nothing of this name.

  Raises:
    InputError: no such bucket, no credentials, a package is missing, not a possible name, or the
      copy and the store have both changed.
    OSError: the store does not answer.
  """
  return _copy(url, pattern).path


def keep(url: str) -> Path:
  """`fetch`, and from now on the store gets every change of the copy; see `flush`."""
  copy = _copy(url)
  if not copy.is_kept:
    copy.is_kept = True
    threading.Thread(target=copy.follow, name=f"copy of {url}", daemon=True).start()
  return copy.path


def flush() -> None:
  """Returns when the stores have all that this process wrote, or raises OSError."""
  for copy in [*_copies.values()]:
    if copy.is_kept:
      _patiently(copy.url, copy.push)


class _Copy:
  """A folder or a file of a store, its copy, and what both had when they were last equal.

  The record of each file is the version in the store, and the size and time of the copy.
  """

  def __init__(self, url: str):
    scheme, name = url.split("://", 1)
    parts = name.rstrip("/").split("/")
    if not all(parts) or {".", ".."} & set(parts):
      raise InputError(f"{url}: not a possible name; give {scheme}://BUCKET/NAME")
    if len(parts) == 1:
      raise InputError(f"{url}: names a whole bucket; give {scheme}://BUCKET/NAME")
    self.url, self.is_kept, self.key = url.rstrip("/"), False, "/".join(parts)
    base = _place()
    self.path = base.joinpath(scheme, *parts)
    self._file = base / "records" / f"{hashlib.sha256(self.url.encode()).hexdigest()[:24]}.json"
    self._remote = _file_system(scheme, self.url)

  def bring(self, pattern: str = "") -> None:
    """Makes the copy equal to what the store has."""
    with self._record() as known:
      there = self._listed()
      self._taken(known, there)
      wanted = {
        name: info
        for name, info in there.items()
        if not pattern or fnmatch.fnmatch(name, pattern)
      }
      new = {n: info for n, info in wanted.items() if not self._is_same(n, known, info)}
      for name in new:
        _, *last = known.get(name, ["", None])
        if last != NOTHING and _seen(self._local(name)) not in (None, tuple(last)):
          raise InputError(
            f"{self.url}: {name} has changed there and in the copy {self.path}; move the copy away "
            f"to take what is there"
          )
      self._get(new, known)
      for name in known.keys() - there.keys() - {MANIFEST}:  # deleted by another machine
        if _seen(self._local(name)) == tuple(known[name][1:]):
          self._local(name).unlink()
        del known[name]

  def follow(self) -> None:
    """Brings the changes to the store, for as long as the process lives."""
    failed = False
    while True:
      time.sleep(EACH)
      try:
        self.push()
        if failed:
          LOGGER.warning(f"{self.url}: answers again, and has all that was written")
        failed = False
      except InputError as error:
        LOGGER.warning(f"warning: {error}")
        return
      except OSError as error:
        if not failed:
          LOGGER.warning(
            f"warning: {self.url}: {error.strerror}; {self.path} has all, and it is tried again"
          )
        failed = True

  def push(self) -> None:
    """One pass: what has changed in the copy, the manifest, and then what was removed."""
    for _ in range(100):
      try:
        return self._push()
      except Gone:  # a checkpoint was removed; the next pass sees the folder without it
        continue

  def _push(self) -> None:
    with self._record() as known:
      here = self._here()
      new = [name for name in here if name not in known or tuple(known[name][1:]) != here[name]]
      gone = [name for name in known if name not in here and name != MANIFEST]
      if not new and not gone:
        return
      if not self.path.is_file():
        self._taken(known, self._infos())
      for name in new:
        try:
          self._ask(lambda name=name: self._remote.put_file(str(self._local(name)), self._at(name)))
        except FileNotFoundError:
          if self._local(name).exists():
            raise
          raise Gone from None
        known[name] = [self._version(name), *here[name]]
      if not self.path.is_file():
        listed = json.dumps({"files": {name: size for name, (size, _) in here.items()}}).encode()
        self._ask(lambda: self._remote.pipe_file(self._at(MANIFEST), listed))
        known[MANIFEST] = [self._version(MANIFEST), *NOTHING]
      for name in gone:
        with contextlib.suppress(FileNotFoundError):
          self._ask(lambda name=name: self._remote.rm_file(self._at(name)))
        del known[name]

  def _taken(self, known: dict[str, list], infos: dict[str, dict]) -> None:
    """Notes the manifest of the store. Refuses if another machine has written and we have too."""
    manifest = infos.pop(MANIFEST, None)
    version = _version(manifest) if manifest else None
    before = known.get(MANIFEST, [None])[0]
    if self.is_kept and version != before:
      raise InputError(
        f"{self.url}: another machine writes there too; {self.path} has what was written here. "
        f"Move it away to take what is there"
      )
    if version:
      known[MANIFEST] = [version, *NOTHING]

  def _here(self) -> dict[str, tuple[int, int]]:
    """Size and time of each file of the copy that is complete, by its name."""
    if self.path.is_file():
      return {"": _seen(self.path) or (0, 0)}
    found = {}
    for folder, below, names in os.walk(self.path):
      below[:] = sorted(name for name in below if UNFINISHED not in name)
      for name in sorted(names):
        file = Path(folder, name)
        if not is_temporary(file) and file.is_file() and (seen := _seen(file)):
          found[file.relative_to(self.path).as_posix()] = seen
    return found

  def _infos(self) -> dict[str, dict]:
    """What the store has below this name: its answers by the names of objects."""
    try:
      found = self._ask(lambda: self._remote.find(self.key, detail=True))
    except FileNotFoundError:
      found = {}
    if not found:
      bucket = self.key.split("/")[0]
      if not self._ask(lambda: self._remote.exists(bucket)):
        raise InputError(f"{self.url}: no bucket {bucket!r}, or no right to see it; make it first")
    infos = {}
    for key, info in found.items():
      name = key[len(self.key) :].lstrip("/")
      if info.get("type") == "file" and not key.endswith("/"):
        if {"", ".", ".."} & set(name.split("/")) and key != self.key:
          raise InputError(f"{self.url}: has an object {key!r}, which cannot be a file; rename it")
        infos[name] = info
    return infos

  def _listed(self) -> dict[str, dict]:
    """`_infos`, without what no complete pass has written."""
    infos = self._infos()
    if MANIFEST not in infos:
      return infos
    try:
      content = self._ask(lambda: self._remote.cat_file(self._at(MANIFEST)))
      names = json.loads(content)["files"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
      raise InputError(f"{self.url}/{MANIFEST}: damaged; remove it to take all files") from None
    missing = sorted(names - infos.keys())
    if missing:
      raise InputError(f"{self.url}: {missing[0]} is missing there; put a copy there")
    return {name: info for name, info in infos.items() if name in names or name == MANIFEST}

  def _get(self, new: dict[str, dict], known: dict[str, list]) -> None:
    total, done = sum(info["size"] for info in new.values()), 0
    if not new:
      return
    known.update({name: ["", *NOTHING] for name in new})
    write_json(self._file, known)  # if the process is killed, these are fetched again
    with track(make_console(stderr=True), f"fetch {self.url}", total, in_bytes=True) as advance:
      for name, info in new.items():
        file = self._local(name)
        try:
          with atomic(file) as half:
            self._ask(lambda name=name, half=half: self._remote.get_file(self._at(name), str(half)))
            if half.stat().st_size != info["size"]:
              raise OSError(errno.EIO, f"{name} has another size than the store says", self.url)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
          raise InputError(
            f"{self.url}: {name} is the name of an object and of a folder; rename one"
          ) from None
        known[name] = [_version(info), *(_seen(file) or (0, 0))]
        done += info["size"]
        advance(done)

  def _is_same(self, name: str, known: dict[str, list], info: dict) -> bool:
    """Whether the store has the version of the record, and the copy is there, changed or not."""
    return name in known and known[name][0] == _version(info) and self._local(name).exists()

  def _version(self, name: str) -> str:
    return _version(self._ask(lambda: self._remote.info(self._at(name))))

  def _local(self, name: str) -> Path:
    return self.path / name if name else self.path

  def _at(self, name: str) -> str:
    return f"{self.key}/{name}" if name else self.key

  @contextlib.contextmanager
  def _record(self) -> Iterator[dict[str, list]]:
    """The record, which is written again at the end, and locked: other processes share the copy."""
    self._file.parent.mkdir(parents=True, exist_ok=True)
    with open(self._file.with_suffix(".lock"), "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      try:
        known = json.loads(self._file.read_text())
      except (OSError, ValueError):
        known = {}
      try:
        yield known
      finally:
        write_json(self._file, known)

  def _ask(self, request: Callable[[], Given]) -> Given:
    """The answer of the store to one request; the libraries try each several times."""
    try:
      return request()
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
      raise
    except Exception as error:  # each store has its own classes
      raise _told(self.url, error) from error


_copies: dict[str, _Copy] = {}
_lock = threading.Lock()


def _copy(url: str, pattern: str = "") -> _Copy:
  """The copy that has this URL. A folder that was fetched before serves all names in it."""
  with _lock:
    name = url.rstrip("/")
    for known, copy in _copies.items():
      if not pattern and name == known:
        return copy
      if name.startswith(f"{known}/") and copy.is_kept:
        return _inside(copy, name)
    copy = _Copy(url)
    _patiently(url, lambda: copy.bring(pattern))
    if not pattern:
      _copies[copy.url] = copy
    return copy


def _inside(outer: _Copy, url: str) -> _Copy:
  """A name in a folder that is kept: its copy is a part of the folder's."""
  copy = _Copy(url)
  copy.is_kept = True  # by the thread of the folder
  copy.push = outer.push  # type: ignore[method-assign]
  return copy


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


def _told(url: str, error: Exception) -> Exception:
  """One line about an error of a store: an InputError if the user must act, else an OSError."""
  text = " ".join(str(error).split())[:200] or type(error).__name__
  kind = type(error).__name__
  refused = ("Credentials" in kind, "credentials" in text, "nonymous" in text, "Forbidden" in text)
  if isinstance(error, PermissionError) or any(refused):
    scheme = url.split(":")[0]
    names = {
      "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
      "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    }
    return InputError(f"{url}: access is refused ({text}); set the credentials: {names[scheme]}")
  return OSError(errno.ETIMEDOUT, f"the object store does not answer ({text})", url)


def _file_system(scheme: str, url: str) -> Any:
  package, extra = PACKAGES[scheme]
  try:
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
  except ImportError:
    raise InputError(
      f"{url}: needs the package {package}; pip install 'infini-jax[{extra}]'"
    ) from None


def _version(info: dict) -> str:
  """What changes when an object is written again."""
  names = ("ETag", "generation", "etag", "md5Hash", "LastModified", "updated", "mtime")
  return next(str(info[name]) for name in names if info.get(name))


def _seen(file: Path) -> tuple[int, int] | None:
  """Size and time of a file; None if it is not there."""
  try:
    found = file.stat()
  except OSError:
    return None
  return found.st_size, found.st_mtime_ns


def _place() -> Path:
  """The folder of all copies, in the user's cache folder."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return Path(home) / "infini_jax" / "objects"
