"""Files that are whole or not there: each is written beside its place, and takes it when complete.

So a reader never sees half a file, and of several writers of one file the last one wins. Nothing
else of the package writes in place what another process, or a later one, relies on.
"""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".tmp"  # how the name of every temporary file ends
LONGER = len(f".12345678{SUFFIX}")  # bytes: a temporary name is longer than the file's by so much
NEVER_SYNCS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems that cannot


@contextlib.contextmanager
def atomic(file: Path) -> Iterator[Path]:
  """Yields the path of an empty temporary file beside `file`, which replaces it after the body.

  The body may write into it or put another file in its place. Its content is on the disk before it
  gets the name of `file`. If the body fails, the temporary file is removed and `file` is as it was.
  The name is new at every call, so that hosts, processes and threads never share one. What a
  killed process leaves behind, `left_over` finds.

  Args:
    file: to be written; its folder is made if need be.

  Raises:
    OSError: it cannot be written.
  """
  temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}{SUFFIX}")
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary.touch(exist_ok=False)
  try:
    mode = temporary.stat().st_mode  # the usual one; some libraries let the owner alone read
    yield temporary
    temporary.chmod(mode)
    _sync(temporary)
    os.replace(temporary, file)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_bytes(file: Path, content: bytes) -> None:
  """Writes all of a file or nothing; see `atomic`."""
  with atomic(file) as temporary:
    temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
  """The same of text, in UTF-8."""
  write_bytes(file, text.encode())


def write_json(file: Path, content: Any) -> None:
  """The same of JSON, indented."""
  write_text(file, json.dumps(content, indent=2) + "\n")


def is_temporary(file: Path) -> bool:
  """Whether a name is that of a temporary file, of this program or an older one."""
  return file.suffix == SUFFIX


def left_over(folder: Path) -> list[Path]:
  """The temporary files in a folder and those in it; some may be of a process that still runs."""
  return [*folder.rglob(f"*{SUFFIX}")]


def _sync(file: Path) -> None:
  with file.open("r+b") as opened:
    try:
      os.fsync(opened.fileno())
    except OSError as error:
      if error.errno not in NEVER_SYNCS:
        raise
