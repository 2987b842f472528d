"""What a failed command prints, and its exit status."""

import errno
import os
import sys
import traceback

from infini_jax.config import InputError

# Errors of a path that a user can fix: a file instead of a folder or the reverse, no permission.
FORBIDDEN = {
  *(errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EROFS),
  *(errno.ELOOP, errno.ENAMETOOLONG),
}

# Errors of a disk or of a network file system, which may be gone at the next start.
BROKEN = {errno.EIO, errno.ENOTCONN, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT}


def status_of(command: str, error: BaseException) -> int:
  """Prints an error, and returns its exit status."""
  if isinstance(error, KeyboardInterrupt):
    return 130
  if not isinstance(error, InputError) and (line := _outside(error)):
    error = InputError(line)
  if isinstance(error, OSError) and error.errno in BROKEN:
    where = f"{error.filename}: " if error.filename else ""
    print(
      f"infini-jax {command}: {where}{error.strerror}; does its file system answer? The same "
      f"command continues",
      file=sys.stderr,
    )
  elif isinstance(error, InputError | FloatingPointError | TimeoutError):
    print(f"infini-jax {command}: {error}", file=sys.stderr)
  else:
    traceback.print_exception(error)
  return 2 if isinstance(error, InputError) else 1


def _outside(error: BaseException) -> str:
  """One line about an error of the machine, such as a full disk; empty for other errors."""
  text = " ".join(str(error).split())
  if isinstance(error, OSError) and error.errno in FORBIDDEN:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; choose another path, or set its permissions"
  if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
    return f"{text[:300]}; make room there, or choose another path"
  if text.startswith("attention="):  # operations do not have the name of the config's section
    return f"config.run.{text}"
  if text.startswith("RESOURCE_EXHAUSTED"):  # XLA's message for a full device memory
    return (
      f"{text[:200]}: too much for a device; infini-jax plan says what a run needs: lower "
      f"config.data.lanes, or raise config.train.accumulate or config.mesh.fsdp"
    )
  return ""
