"""The files of a corpus: their splits and names, and the files that are left out."""

import collections
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import InputError
from infini_jax.data.sources.base import named_split, split_rule
from infini_jax.data.sources.specs import advice, cut, glob_of, plain
from infini_jax.data.sources.walk import ABOVE, Way, expand, once, one_split, unreadable, walk

PACKED = (".gz", ".zst")  # suffixes after another suffix
ENDINGS = 5  # the most suffixes of left-out files that are named one by one


class File(NamedTuple):
  """A file of a corpus; `name` is its path below the folder that holds all of them."""

  path: Path
  name: str
  splits: tuple[str, ...]  # as in `CorpusPart`
  size: int  # bytes


class Listing(NamedTuple):
  """What was found in folders: the files of a corpus, and everything else."""

  taken: list[Way]
  rest: list[Way]


def find_files(
  spec: str, patterns: str, suffixes: tuple[str, ...], train: bool = True, skips: bool = False
) -> tuple[list[File], str, str]:
  """The files of a corpus in the order of their names, a note on splits, a line on left-out files.

  A file belongs to the split that its name contains, else to the split that its folder's name
  contains, else to train. A file is read once, even if several patterns, links or paths lead to it;
  if one of them contains validation or test, the file is held out.

  Args:
    spec: the spec of the corpus, for errors.
    patterns: files, folders or patterns such as data/*.jsonl, separated by commas.
    suffixes: the suffixes of files that are taken from a folder, in lower case.
    train: whether there must be a file for train.
    skips: a file that cannot be read is taken too: its part says why.

  Raises:
    InputError: a pattern matches nothing, there is no file for train, or a file cannot be read.
  """
  taken: list[Way] = []
  rest: list[Way] = []
  for pattern in filter(None, cut(patterns, ",")):
    found = _match(pattern, suffixes)
    if not found.taken:
      raise InputError(
        f"corpus {spec!r}: no file matches {pattern!r}{_holding(found.rest)}; give files, folders "
        f"of {' '.join(suffixes)} files, or a pattern, with commas between{advice(patterns)}"
      )
    taken += found.taken
    rest += found.rest
  if not taken:
    raise InputError(f"corpus {spec!r}: names no file; write {spec.partition(':')[0]}:FILES")
  whole = _folder_of(way.path for way in taken)
  split_of = lambda way: way.split or named_split(name_below(whole, way.path))
  ways = one_split(taken, lambda way: split_of(way).strip(ABOVE))
  splits = {way.path: split_of(way).strip(ABOVE) or "train" for way in ways}
  if train and "train" not in splits.values():
    raise InputError(
      f"corpus {spec!r}: all files are named for validation or test; add files for train"
    )
  rule, note = split_rule(set(splits.values()))
  root = _folder_of(splits)
  size = file_size if not skips else size_or_one
  files = [File(p, name_below(root, p), rule[split], size(p)) for p, split in splits.items()]
  known = {way.real for way in taken}
  others = left_out(way for way in rest if way.real not in known)
  return sorted(files, key=lambda file: file.name), note, others


def files_below(
  folders: Iterable[Way], suffixes: tuple[str, ...], skip: Collection[str] = ()
) -> Listing:
  """The files below folders that have one of the suffixes, in upper or lower case; and the rest.

  A file whose paths name several splits comes once for each split.

  Raises:
    InputError: a folder cannot be read.
  """
  taken: list[Way] = []
  rest: list[Way] = []
  for _, ways in walk(folders, skip):
    for way in ways:
      fits = not way.is_hidden() and way.path.name.lower().endswith(suffixes)
      (taken if fits else rest).append(way)
  return Listing(once(taken, lambda way: way.split), rest)


def left_out(ways: Iterable[Way]) -> str:
  """A line about what was found but is not part of the corpus; "" if there is nothing."""
  ways = once(ways)
  hidden = sum(way.is_hidden() for way in ways)
  seen = [way.path for way in ways if not way.is_hidden()]
  broken = [path for path in seen if not os.path.exists(path)]
  endings = collections.Counter(_ending(path) for path in seen if os.path.exists(path))
  named = endings.most_common(ENDINGS)
  counts = [f"{count:,} {ending}" for ending, count in named]
  if others := endings.total() - sum(count for _, count in named):
    counts.append(f"{others:,} others")
  parts = [f"{endings.total():,} files ({', '.join(counts)})"] if counts else []
  parts += [f"{hidden:,} hidden files or folders"] if hidden else []
  parts += [f"{len(broken):,} links to nothing ({name_of(min(broken))})"] if broken else []
  return f"left out: {', '.join(parts)}" if parts else ""


def file_size(file: Path) -> int:
  """The size of a file in bytes.

  Raises:
    InputError: it is not a file, or it is a compressed file of 0 bytes.
  """
  try:
    if not file.is_file():
      raise unreadable(file, "a link to nothing, or not a text file")
    size = file.stat().st_size
  except OSError as error:
    raise unreadable(file, error.strerror) from None
  if not size and packing(file):
    raise unreadable(file, "0 bytes: it was never written whole")
  return size


def size_or_one(file: Path) -> int:
  """The same; 1 if the file cannot be read."""
  try:
    return file_size(file)
  except InputError:
    return 1


def packing(file: Path) -> str:
  """How a file is compressed: ".gz", ".zst", or "" if it is not."""
  suffix = file.suffix.lower()
  return suffix if suffix in PACKED else ""


def name_below(root: Path, file: Path) -> str:
  """The path of a file inside its corpus, as text that can be printed, for all bytes."""
  return name_of(file.relative_to(root))


def name_of(path: Path) -> str:
  """A path as text that can be printed, for all bytes."""
  return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _match(pattern: str, suffixes: tuple[str, ...]) -> Listing:
  """What a pattern matches: files of any suffix, and in folders, files of these suffixes."""
  written = os.path.expanduser(plain(pattern))
  if os.path.lexists(written):  # a path that exists is not a pattern, even if its name has brackets
    found, others = [Way.to(Path(written))], []
  else:
    written = os.path.expanduser(glob_of(pattern))
    found = expand(written)
    known = {way.real for way in found}
    others = [way for way in expand(written, ignore_case=True) if way.real not in known]
  taken, rest = [], [way for way in others if not os.path.isdir(way.path)]
  for way in found:
    if not os.path.isdir(way.path):
      taken.append(way)
      continue
    below = files_below([way], suffixes)
    taken += below.taken
    rest += below.rest
  return Listing(taken, rest)


def _folder_of(paths: Iterable[Path]) -> Path:
  """The folder that holds all of these files."""
  return Path(os.path.commonpath([path.parent for path in paths]))


def _holding(rest: list[Way]) -> str:
  """The part of an error about what exists where no file was found."""
  line = left_out(rest).partition(": ")[2]
  return f" (there: {line})" if line else ""


def _ending(path: Path) -> str:
  """The suffix of a name that gives the kind of the file, such as `.jsonl.gz`."""
  match = re.search(r"(\.\w{1,9})?(\.\w{1,9})$", path.name)
  if not match:
    return "without an ending"
  return match[0] if packing(path) else match[2]
