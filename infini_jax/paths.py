"""Paths that a user gives: expands `~`, and refuses at once a path that cannot be written.

To check a folder, an unnamed temporary file is written in it. Permission bits are not enough: they
do not apply to root, and do not show a read-only file system.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path

from infini_jax import buckets, files
from infini_jax.config import InputError

# A URL, also with only one slash, as pathlib writes it. A folder of this name is given as ./gs:/x.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:/")
PLACED = re.compile(r"(?:^|(?<=[:,]))(?:s3|gs)://[^,?]*")  # in the spec of a corpus
INSIDE = 256  # bytes that the paths inside a folder of the package may add to its path
SHOWN = 200  # the most characters of a path in a message
WHY = {
  errno.ELOOP: "is a link that leads to itself; repair it",
  errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
  errno.EACCES: "cannot be reached (Permission denied); choose another path",
}


def expand(path: str) -> str:
  """Expands `~` and `~user` to the home folders, and URLs of object stores to their copies.

  Args:
    path: a path, or the spec of a corpus with URLs as paths.
  """
  return os.path.expanduser(PLACED.sub(lambda match: _fetched(match[0]), path))


def local(path: str | os.PathLike[str], name: str = "", *, writes: bool = False) -> Path:
  """A path on this machine, for reading or writing. It need not exist.

  A folder or file of an object store is copied to this machine first.

  Args:
    path: the path as the user gave it.
    name: the name of the flag or the field, for the error message.
    writes: whether an object store gets what is written there.

  Raises:
    InputError: it is empty, another URL, the home of an unknown user, or not a possible path.
    OSError: the object store does not answer.
  """
  text = os.fspath(path)
  if buckets.is_url(text):
    try:
      return buckets.keep(text) if writes else buckets.fetch(text)
    except InputError as error:
      raise InputError(f"{name}={error}" if name else str(error)) from None
  if not text:
    raise InputError(f"{name or 'a path'} is empty; give one")
  if "\0" in text:
    raise _wrong(text, name, "holds a NUL character, which no path may hold; leave it out")
  if URL.match(text):
    raise _wrong(text, name, "is a URL; give a local path, s3://BUCKET/NAME or gs://BUCKET/NAME")
  home = text.split("/")[0]
  found = expand(text)
  if home.startswith("~") and found.split("/")[0] == home:
    raise _wrong(text, name, f"no user has the home {home}; a folder of that name is ./{home}")
  try:
    os.stat(found)
  except UnicodeEncodeError:
    raise _wrong(text, name, "cannot be a name; choose another") from None
  except OSError as error:
    if error.errno in WHY:
      raise _wrong(text, name, WHY[error.errno]) from None
  return Path(found)


def folder_to_write(path: str | os.PathLike[str], name: str = "") -> Path:
  """A folder that exists and can be written, or that can be made with its parents.

  Raises:
    InputError: it cannot be written or made, or `local` refuses the path.
    OSError: the object store does not answer.
  """
  found = local(path, name, writes=True)
  whole = found.absolute()
  parent = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
  if not parent.exists():
    raise _wrong(path, name, f"{_shown(parent)} is a link to nothing; repair or remove it")
  if not parent.is_dir():
    which = "is" if parent == whole else f"{_shown(parent)} is"
    raise _wrong(path, name, f"{which} a file; name a folder")
  _check_names(path, name, parent, whole, INSIDE)
  _try(path, name, parent)
  return found


def file_to_write(
  path: str | os.PathLike[str], name: str = "", *, begins: bytes = b"", replaced: bool = False
) -> Path:
  """A file that can be written, in a folder that exists.

  Args:
    path: the path as the user gave it.
    name: the name of the flag or the field, for the error message.
    begins: a pattern for the first bytes of such files. A file that begins otherwise is refused.
    replaced: whether the file is replaced by another one. Then it must not be a device or a pipe.

  Raises:
    InputError: it cannot be written, or `local` refuses the path.
    OSError: the object store does not answer.
  """
  found = local(path, name, writes=True)
  if buckets.is_url(path):
    found.parent.mkdir(parents=True, exist_ok=True)
  if found.is_dir() or os.fspath(path).endswith("/"):
    raise _wrong(path, name, "is a folder; name a file")
  if found.is_symlink() and not found.exists():
    raise _wrong(path, name, f"is a link to nothing ({os.readlink(found)}); repair or remove it")
  parent = found.absolute().parent
  if not parent.exists():
    raise _wrong(path, name, f"no such folder {_shown(parent)}; make it first")
  if not parent.is_dir():
    raise _wrong(path, name, f"{_shown(parent)} is a file; name one in a folder")
  if found.exists() and not stat.S_ISREG(found.stat().st_mode):
    if replaced:
      raise _wrong(path, name, "is a device or a pipe; name a file")
  else:
    _check_names(path, name, parent, found.absolute(), 0)
    _try(path, name, parent)
  if found.exists() and not os.access(found, os.W_OK):
    raise _wrong(path, name, "cannot be written (Permission denied); choose another file")
  if begins and found.is_file() and not _fits(found, begins):
    raise _wrong(path, name, "exists, and holds something else; choose another, or remove it")
  return found


def _fetched(url: str) -> str:
  """The copy of a URL in the spec of a corpus. Of a pattern, the files that match are copied."""
  begins = re.search(r"[*\[]", url)
  if begins is None:
    return str(buckets.fetch(url))
  folder = url[: url.rindex("/", 0, begins.start())]
  pattern = url[len(folder) + 1 :]
  return f"{buckets.fetch(folder, pattern)}/{pattern}"


def _fits(file: Path, begins: bytes) -> bool:
  """Whether a file is empty, or its first bytes match the pattern."""
  with contextlib.suppress(OSError), file.open("rb") as opened:
    first = opened.read(256)
    return not first or re.match(begins, first, re.DOTALL) is not None
  return False  # a file that cannot be read is treated as another kind of file


def _check_names(path: str | os.PathLike[str], name: str, parent: Path, whole: Path, more: int):
  """Raises InputError if a new name below `parent`, or the whole path plus `more`, is too long."""
  new = whole.relative_to(parent).parts if not whole.exists() else ()
  most = os.pathconf(parent, "PC_NAME_MAX") - files.LONGER
  length = len(os.fsencode(whole)) + more
  if any(len(os.fsencode(part)) > most for part in new) or (
    new and length > os.pathconf(parent, "PC_PATH_MAX")
  ):
    raise _wrong(path, name, WHY[errno.ENAMETOOLONG])


def _try(path: str | os.PathLike[str], name: str, parent: Path) -> None:
  """Raises InputError if no file can be made in a folder."""
  try:
    with tempfile.TemporaryFile(dir=parent):
      pass
  except OSError as error:
    raise _wrong(
      path, name, f"{_shown(parent)} takes no files ({error.strerror}); choose another path"
    ) from None


def _wrong(path: str | os.PathLike[str], name: str, why: str) -> InputError:
  shown = _shown(path)
  return InputError(f"{name}={shown}: {why}" if name else f"{shown}: {why}")


def _shown(path: str | os.PathLike[str]) -> str:
  """A path as one line of a message, cut if it is long."""
  text = os.fspath(path)
  text = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
  return text if text.isprintable() else repr(text)
