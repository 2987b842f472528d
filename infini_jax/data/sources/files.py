"""Files: those in a folder; those of a pattern, for the kinds that are lists of files."""

import glob
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import InputError
from infini_jax.data.sources.base import CALLED, split_rule

# Whole words of a path: `c4-validation.00001.json.gz`, but not `contest.jsonl`.
NAMED = re.compile(rf"(?<![a-z])({'|'.join(CALLED)})(?![a-z])")


class File(NamedTuple):
  """A file of a corpus; `name` is its path below the folder that holds all of them."""

  path: Path
  name: str
  splits: tuple[str, ...]  # as of a Part
  size: int  # bytes


def find_files(spec: str, patterns: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
  """The files of a corpus in the order of their names, and a note on their splits.

  A file belongs to the split that its name speaks of, or else its folder's; to train if neither.

  Args:
    spec: of the corpus, for errors.
    patterns: files, folders or patterns such as data/*.jsonl, with commas between.
    suffixes: of the files of a folder.

  Raises:
    InputError: a pattern that nothing matches, no file for train, or one that cannot be read.
  """
  paths: set[Path] = set()
  for pattern in filter(None, patterns.split(",")):
    place = os.path.expanduser(pattern)
    # A name may hold brackets: what is there is no pattern.
    found = [
      Path(p) for p in ([place] if os.path.exists(place) else glob.glob(place, recursive=True))
    ]
    some = [file for file in found if file.is_file()]
    for folder in (path for path in found if path.is_dir()):
      some += [file for file in files_below(folder) if file.name.endswith(suffixes)]
    if not some:
      raise InputError(
        f"corpus {spec!r}: no file matches {pattern!r}; give files, folders of "
        f"{' '.join(suffixes)} files, or a pattern, with commas between"
      )
    paths |= {file.absolute() for file in some}
  if not paths:
    raise InputError(f"corpus {spec!r}: names no file; write {spec.partition(':')[0]}:FILES")
  root = os.path.commonpath([path.parent for path in paths])
  names = {path: name_below(Path(root), path) for path in paths}
  words = {path: NAMED.findall(name.lower()) for path, name in names.items()}
  splits = {path: CALLED[w[-1]] if w else "train" for path, w in words.items()}
  if "train" not in splits.values():
    raise InputError(
      f"corpus {spec!r}: all files are named for validation or test; add files for train"
    )
  rule, note = split_rule(set(splits.values()))
  files = [File(p, names[p], rule[splits[p]], file_size(p)) for p in paths]
  return sorted(files, key=lambda file: file.name), note


def files_below(
  folder: Path, skip: Collection[str] = (), inside: tuple[str, ...] = ()
) -> Iterator[Path]:
  """All that stands in a folder and the folders below it, but what is hidden.

  Links are followed, but not to a folder that they stand in: nothing would end there.

  Args:
    folder: to be searched.
    skip: names of folders to leave out.
    inside: the folders that it stands in, where they really are.

  Raises:
    InputError: a folder that cannot be read.
  """
  here = os.path.realpath(folder)
  if here in inside:
    return
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except OSError as error:
    raise unreadable(folder, error.strerror) from None
  for entry in entries:
    if entry.name.startswith("."):
      continue
    path = folder / entry.name
    if not (path if entry.is_symlink() else entry).is_dir():  # an entry fails on a link to itself
      yield path
    elif entry.name not in skip:
      yield from files_below(path, skip, (*inside, here))


def file_size(file: Path) -> int:
  """The bytes of a file.

  Raises:
    InputError: it is none, or was packed and has nothing in it.
  """
  try:
    if not file.is_file():
      raise unreadable(file, "a link to nothing, or no file of text")
    size = file.stat().st_size
  except OSError as error:
    raise unreadable(file, error.strerror) from None
  if not size and file.suffix in (".gz", ".zst"):
    raise unreadable(file, "0 bytes: it was never written whole")
  return size


def name_below(root: Path, file: Path) -> str:
  """The path of a file inside its corpus: text that can be printed, whatever the bytes are."""
  return os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def unreadable(path: Path, why: object) -> InputError:
  """The error of a file or folder of a corpus."""
  return InputError(f"{path}: cannot be read ({why}); repair or remove it")
