"""Atomic files and folders: written under a temporary name, and renamed when they are complete.

So a reader never sees an incomplete file, and the last of several writers replaces the others. The
package writes every file that another process or a later run reads with these functions. Only this
file renames and locks.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".tmp"  # the end of the name of every temporary file
PARTIAL = ".partial"  # the end of the name of every folder that is not complete yet
LONGER = len(f".12345678{SUFFIX}")  # bytes that a temporary name has more than the file's name
NEVER_SYNCS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems without fsync
# Of file systems without locks. NFS cannot lock a folder: it is open for reading only (EBADF).
NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def atomic(file: Path) -> Iterator[Path]:
  """Yields the path of an empty temporary file next to `file`, which replaces it after the body.

  The body may write into it or replace it. Its content is on the disk before it
  gets the name of `file`. If the body fails, the temporary file is removed and `file` is unchanged.
  The name is new at every call, so hosts, processes and threads have different ones. `left_over`
  finds the temporary files of killed processes.

  Args:
    file: the file to write. Its folder is made if it does not exist.

  Raises:
    OSError: it cannot be written.
  """
  temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}{SUFFIX}")
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary.touch(exist_ok=False)
  try:
    mode = temporary.stat().st_mode  # the usual mode; some libraries let only the owner read
    yield temporary
    temporary.chmod(mode)
    _sync(temporary)
    os.replace(temporary, file)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
  """Yields the empty folder `FOLDER.partial`, which becomes `folder` after the body.

  It is locked meanwhile. What a killed process left in it is removed first. If the body fails, it
  is removed.

  Args:
    folder: the folder to make. It may exist if it is empty.

  Raises:
    BlockingIOError: another process is writing it.
    OSError: it cannot be written, or `folder` is not empty.
  """
  partial = folder.with_name(f"{folder.name}{PARTIAL}")
  partial.mkdir(parents=True, exist_ok=True)
  with locked(partial):
    try:
      for left in partial.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
      yield partial
      os.replace(partial, folder)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
  """Locks a folder, or a file that is made if it does not exist, during the body.

  On a file system without locks it has no effect.

  Args:
    path: the folder or the file.
    wait: waits until no other process has locked it.

  Raises:
    BlockingIOError: another process has locked it, and `wait` is False.
  """
  if path.is_dir():
    held = os.open(path, os.O_RDONLY)
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(path, os.O_RDWR | os.O_CREAT)
  try:
    try:
      fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
      if error.errno not in NO_LOCKS:
        raise
    yield
  finally:
    os.close(held)


def move_into(path: Path, folder: Path) -> Path:
  """Moves a file or folder into another folder, under its own name or `NAME-1`, `NAME-2`, ...

  Returns:
    The new path.

  Raises:
    OSError: it cannot be moved.
  """
  folder.mkdir(parents=True, exist_ok=True)
  names = (folder / f"{path.name}{f'-{i}' if i else ''}" for i in itertools.count())
  free = next(name for name in names if not name.exists())
  os.rename(path, free)
  return free


def write_bytes(file: Path, content: bytes) -> None:
  """Writes all of a file or nothing; see `atomic`. A device or a pipe is written directly."""
  if file.exists() and not file.is_file():
    file.write_bytes(content)
    return
  with atomic(file) as temporary:
    temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
  """Writes all of a text in UTF-8, or nothing."""
  write_bytes(file, text.encode())


def write_json(file: Path, content: Any) -> None:
  """Writes all of a content as indented JSON, or nothing."""
  write_text(file, json.dumps(content, indent=2) + "\n")


def is_temporary(file: Path) -> bool:
  """Whether a name is that of a temporary file, of this version of the program or an older one."""
  return file.suffix == SUFFIX


def left_over(folder: Path) -> list[Path]:
  """The temporary files below a folder. Some may belong to a process that still runs."""
  return [*folder.rglob(f"*{SUFFIX}")]


def _sync(file: Path) -> None:
  with file.open("r+b") as opened:
    try:
      os.fsync(opened.fileno())
    except OSError as error:
      if error.errno not in NEVER_SYNCS:
        raise
