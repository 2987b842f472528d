"""Digests: which bytes files had when they were written; short hashes that identify a content.

`seal` writes the digests of a folder to a file in it, `problems` compares them. `signed` adds the
digest of a JSON file's content to it, `matches` compares it. The hash is SHA-256, which
processors compute in hardware. Files are hashed in threads, because hashlib releases the GIL.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from infini_jax.files import is_temporary, write_json

FILE = "digests.json"
THREADS = 4
SHOWN = 3  # problems that one line names


def short_hash(content: bytes | Iterable[bytes], size: int = 8) -> str:
  """A short hash of a content, which may come in pieces: `2 * size` hexadecimal digits.

  It identifies a content among others, for example a tokenizer. `signed` and `seal` are for
  damage.
  """
  hashed = hashlib.blake2b(digest_size=size)
  for piece in [content] if isinstance(content, bytes) else content:
    hashed.update(piece)
  return hashed.hexdigest()


def signed(content: dict[str, Any]) -> dict[str, Any]:
  """The content with its hash in the field `sha256`."""
  return content | {"sha256": _of(content)}


def matches(content: dict[str, Any]) -> bool:
  """Whether the content has the hash that it was signed with. True for content without one."""
  rest = {name: value for name, value in content.items() if name != "sha256"}
  return content.get("sha256") in (None, _of(rest))


def seal(folder: Path, without: Iterable[str] = ()) -> None:
  """Writes the digests of all files below a folder to `FILE` in it.

  Args:
    folder: the folder. It must not change any more.
    without: names of files that are left out.

  Raises:
    OSError: a file cannot be read, or the digests cannot be written.
  """
  files = [file for file in _files(folder) if file.name not in without]
  found = dict(zip((_name(folder, file) for file in files), _digests(files), strict=True))
  write_json(folder / FILE, {"sha256": found, "all": _of(found)})


def is_sealed(folder: Path) -> bool:
  """Whether the folder has digests. Programs before 0.2 wrote none."""
  return (folder / FILE).exists()


def problems(folder: Path, within: str = "") -> list[str]:
  """What differs from the digests, one text for each file; empty: nothing.

  Args:
    folder: a folder with digests.
    within: only files whose names begin with this text are compared.
  """
  try:
    content = json.loads((folder / FILE).read_text())
    wanted = dict(content["sha256"])
    if content["all"] != _of(wanted):
      raise ValueError
  except (OSError, ValueError, KeyError, TypeError):
    return [f"{FILE}: damaged"]
  names = sorted(name for name in wanted if name.startswith(within))
  there = [name for name in names if (folder / name).is_file()]
  found = dict(zip(there, _digests([folder / name for name in there]), strict=True))
  return [
    f"{name}: {'other bytes than were written' if name in found else 'missing'}"
    for name in names
    if found.get(name) != wanted[name]
  ]


def in_one_line(found: list[str]) -> str:
  """The first few problems, and how many more there are."""
  more = len(found) - SHOWN
  return ", ".join(found[:SHOWN]) + (f" and {more} more files" if more > 0 else "")


def _files(folder: Path) -> list[Path]:
  found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
  return sorted(file for file in found if file.name != FILE and not is_temporary(file))


def _name(folder: Path, file: Path) -> str:
  return file.relative_to(folder).as_posix()


def _digests(files: list[Path]) -> list[str | None]:
  """One hash for each file; None for a file that cannot be read."""

  def one(file: Path) -> str | None:
    try:
      with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
      return None

  with ThreadPoolExecutor(THREADS) as pool:
    return [*pool.map(one, files)]


def _of(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
