"""A folder or a file of an object store, and its copy on this machine."""

import contextlib
import errno
import fnmatch
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from infini_jax.buckets.store import Bucket
from infini_jax.config import InputError
from infini_jax.files import atomic, is_temporary, locked, write_json
from infini_jax.progress import make_console, track

LOGGER = logging.getLogger("infini_jax")
MANIFEST = ".infini_jax.json"
UNFINISHED = "orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
EACH = 10.0  # seconds between two passes
NOTHING = (0, 0)  # size and time of a file that is not there yet
OLDER = (-1, -1)  # of a file that the store has in an older state


class Gone(Exception):
  """A file of the copy was removed during a pass."""


class Copy:
  """The copy of a folder or a file, and a record of both when they were last equal.

  The record has of each file the version in the store, and the size and time of the copy.

  Attributes:
    url: SCHEME://BUCKET/NAME.
    path: the copy.
    is_kept: whether the store gets what is written to the copy.

  Raises:
    InputError: not a possible name.
  """

  def __init__(self, url: str):
    scheme, name = url.split("://", 1)
    bucket, *parts = name.split("/")
    if not bucket or not parts or not all(parts) or {".", ".."} & {bucket, *parts}:
      raise InputError(f"{url}: not a possible name; give {scheme}://BUCKET/NAME")
    self.url, self.is_kept = url, False
    base = _base_folder()
    self.path = base.joinpath(scheme, bucket, *parts)
    self._file = base / "records" / f"{scheme}-{bucket}.json"  # of the bucket: copies may overlap
    self._lock = base / "locks" / hashlib.sha256(url.encode()).hexdigest()[:24]
    self._remote = Bucket(url, scheme, bucket, "/".join(parts))

  def bring(self, pattern: str = "") -> None:
    """Makes the copy equal to the store, except for changes that were not uploaded yet.

    Raises:
      InputError: a file has changed in both.
    """
    with self._record() as known:
      there = self._listed(known)
      new = {}
      for name, (version, size) in there.items():
        file = self._local(name)
        if pattern and not fnmatch.fnmatch(name, pattern):
          continue
        before, *last = known.get(name, ("", None))
        if before == version and file.exists():
          continue  # the copy may be newer
        if tuple(last) != NOTHING and _seen(file) not in (None, tuple(last)):
          if self._begins(name):
            known[name] = [version, *OLDER]
            continue
          raise InputError(
            f"{self.url}: {name or 'the file'} has changed there and in the copy {self.path}; move "
            f"the copy away to take what is there"
          )
        new[name] = version, size
      self._get(new, known)
      for name in known.keys() - there.keys() - {MANIFEST}:  # removed by another machine
        if _seen(self._local(name)) == tuple(known[name][1:]):
          self._local(name).unlink()
        del known[name]

  def follow(self) -> None:
    """Uploads changes to the store until the process ends."""
    failed = False
    while True:
      time.sleep(EACH)
      try:
        self.push()
        if failed:
          LOGGER.warning(f"{self.url}: answers again, and has all that was written")
        failed = False
      except (InputError, OSError) as error:
        if not failed:
          text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
          LOGGER.warning(f"warning: {self.url}: {text}; it is tried again. {self._safe}")
        failed = True

  def push(self) -> None:
    """One pass: uploads changed files, then the manifest, and then removes objects.

    Raises:
      InputError: another machine writes there too.
      OSError: the store does not answer.
    """
    while True:
      with contextlib.suppress(Gone):  # a checkpoint was removed: try again without it
        return self._pass()

  def _pass(self) -> None:
    with self._record() as known:
      here = self._here()
      new = [name for name in here if name not in known or tuple(known[name][1:]) != here[name]]
      gone = [name for name in known if name not in here and name != MANIFEST]
      if not new and not gone:
        return
      is_folder = not self.path.is_file()
      theirs = self._others(known, new) if is_folder else {}
      for name in new:
        try:
          known[name] = [self._remote.write(name, self._local(name)), *here[name]]
        except FileNotFoundError:
          if self._local(name).exists():
            raise
          raise Gone from None
      if is_folder:
        kept = {name: size for name, size in theirs.items() if name not in gone}
        listed = json.dumps({"files": kept | {name: size for name, (size, _) in here.items()}})
        known[MANIFEST] = [self._remote.write(MANIFEST, listed.encode()), *NOTHING]
      for name in gone:
        self._remote.remove(name)
        del known[name]

  def _others(self, known: dict[str, list], new: list[str]) -> dict[str, int]:
    """The files of the manifest, and their sizes. Other machines may have written other files."""
    versions = self._remote.versions()
    listed = self._manifest() if MANIFEST in versions else {}
    for name in (name for name in new if name in listed and name in versions):
      if versions[name][0] != known.get(name, ("",))[0] and not self._begins(name):
        raise InputError(
          f"{self.url}: another machine writes {name} too. {self._safe}; move it away to take what "
          f"is there"
        )
    return listed

  def _begins(self, name: str) -> bool:
    """Whether a file begins with the content of the store, which was uploaded before a kill."""
    there = self._remote.read(name)
    try:
      with self._local(name).open("rb") as here:
        return here.read(len(there)) == there
    except OSError:
      return False

  def _manifest(self) -> dict[str, int]:
    try:
      return dict(json.loads(self._remote.read(MANIFEST))["files"])
    except (ValueError, KeyError, TypeError):
      raise InputError(f"{self.url}/{MANIFEST}: damaged; remove it to take all files") from None

  @property
  def _safe(self) -> str:
    return f"{self.path} has all that was written here"

  def _here(self) -> dict[str, tuple[int, int]]:
    """Size and time of each file of the copy that is complete, by its name."""
    if self.path.is_file():
      return {"": _seen(self.path) or NOTHING}
    found = {}
    for folder, below, names in os.walk(self.path):
      below[:] = sorted(name for name in below if UNFINISHED not in name)
      for name in sorted(names):
        file = Path(folder, name)
        if not is_temporary(file) and file.is_file() and (seen := _seen(file)):
          found[file.relative_to(self.path).as_posix()] = seen
    return found

  def _listed(self, known: dict[str, list]) -> dict[str, tuple[str, int]]:
    """The objects in the store, without those of an incomplete pass. Records the manifest."""
    versions = self._remote.versions()
    manifest = versions.pop(MANIFEST, None)
    known.pop(MANIFEST, None)
    if manifest is None:
      return versions
    known[MANIFEST] = [manifest[0], *NOTHING]
    names = self._manifest().keys()
    if missing := sorted(names - versions.keys()):
      raise InputError(f"{self.url}: {missing[0]} is missing there; put a copy there")
    return {name: versions[name] for name in names}

  def _get(self, new: dict[str, tuple[str, int]], known: dict[str, list]) -> None:
    if not new:
      return
    known.update({name: ["", *NOTHING] for name in new})
    self._note(known)  # if the process is killed, these are fetched again
    total, done = sum(size for _, size in new.values()), 0
    with track(make_console(stderr=True), f"fetch {self.url}", total, in_bytes=True) as advance:
      for name, (version, size) in new.items():
        file = self._local(name)
        try:
          with atomic(file) as half:
            self._remote.download(name, half)
            if half.stat().st_size != size:
              raise OSError(errno.EIO, f"{name} has another size than the store says", self.url)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
          raise InputError(
            f"{self.url}: {name} is the name of an object and of a folder; rename one"
          ) from None
        known[name] = [version, *(_seen(file) or NOTHING)]
        done += size
        advance(done)

  def _local(self, name: str) -> Path:
    return self.path / name if name else self.path

  @contextlib.contextmanager
  def _record(self) -> Iterator[dict[str, list]]:
    """The record, which is written again at the end. Processes with the same copy take turns."""
    with locked(self._lock, wait=True):
      own = self._remote.key("")
      known = {
        key[len(own) + 1 :]: one
        for key, one in self._every().items()
        if f"{key}/".startswith(f"{own}/")
      }
      try:
        yield known
      finally:
        self._note(known)

  def _note(self, known: dict[str, list]) -> None:
    with locked(self._file.with_suffix(".lock"), wait=True):
      own = self._remote.key("")
      rest = {k: one for k, one in self._every().items() if not f"{k}/".startswith(f"{own}/")}
      write_json(self._file, rest | {self._remote.key(name): one for name, one in known.items()})

  def _every(self) -> dict[str, list]:
    try:
      return json.loads(self._file.read_text())
    except (OSError, ValueError):
      return {}


def _seen(file: Path) -> tuple[int, int] | None:
  """Size and time of a file; None if it is not there."""
  try:
    found = file.stat()
  except OSError:
    return None
  return found.st_size, found.st_mtime_ns


def _base_folder() -> Path:
  """The folder of all copies, in the user's cache folder."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return Path(home) / "infini_jax" / "objects"
