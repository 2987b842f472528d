"""The files below folders and of patterns: each once, even if several links or paths lead to it."""

import fnmatch
import glob
import heapq
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import named_split

ABOVE = "/"  # not a possible name: the split of a path that leads back to a folder above


class Way(NamedTuple):
  """A path to a file or folder. Ways are sorted by the number of links in them.

  Attributes:
    links: how many of its names are symbolic links.
    path: the path as it is written.
    real: the path without links.
    split: the split that its names contain, from the start of the search on; "" if none; ABOVE if
      none after a link to a folder above.
  """

  links: int
  path: Path
  real: str
  split: str = ""

  @classmethod
  def to(cls, path: Path) -> "Way":
    """The way of a path from the root or the current folder; `..` is resolved."""
    way = cls(0, Path("/") if path.is_absolute() else Path.cwd(), "/")
    way = way._replace(real=os.path.realpath(way.path))
    for name in path.parts[path.is_absolute() :]:
      way = way.enter(name)
    return way.start()

  def start(self) -> "Way":
    """The same way as the start of a search."""
    return self._replace(split="")

  def enter(self, name: str) -> "Way":
    """The way to the entry of this name in this folder."""
    if name == "..":
      parent = os.path.dirname(self.real)
      return Way(self.links, Path(parent), parent, self.split)
    return self._enter(name, os.path.islink(self.path / name))

  def entries(self) -> "list[Way]":
    """The ways to all entries of this folder.

    Raises:
      InputError: the folder cannot be read.
    """
    try:
      with os.scandir(self.path) as found:
        return [self._enter(entry.name, entry.is_symlink()) for entry in found]
    except OSError as error:
      raise unreadable(self.path, error.strerror) from None

  def _enter(self, name: str, is_link: bool) -> "Way":
    path = self.path / name
    real = os.path.realpath(path) if is_link else os.path.join(self.real, name)
    return Way(self.links + is_link, path, real, named_split(name) or self.split)

  def is_hidden(self) -> bool:
    """Whether its last name begins with a dot."""
    return self.path.name.startswith(".")


def walk(starts: Iterable[Way], skip: Collection[str] = ()) -> Iterator[tuple[Way, list[Way]]]:
  """Folders and all folders below them, each with its other entries.

  Links are followed; ways with fewer links come first, and there are no endless loops. A folder
  comes once for each split that the ways to it name. A link to a folder above names no split.
  Hidden folders and the folders of `skip` are not entered; they are among the other entries.

  Raises:
    InputError: a folder cannot be read.
  """
  queue = list(starts)
  heapq.heapify(queue)
  seen: set[tuple[str, str]] = set()
  while queue:
    folder = heapq.heappop(queue)
    if (folder.real, folder.split) in seen:
      continue
    seen.add((folder.real, folder.split))
    rest = []
    for way in folder.entries():
      if way.is_hidden() or way.path.name in skip or not os.path.isdir(way.path):
        rest.append(way)
      elif Path(folder.real).is_relative_to(way.real):
        heapq.heappush(queue, way._replace(split=ABOVE))
      else:
        heapq.heappush(queue, way)
    yield folder, rest


def expand(pattern: str, ignore_case: bool = False) -> list[Way]:
  """What a pattern matches, as in a shell with `**`; once for each split, as in `walk`.

  Raises:
    InputError: a folder cannot be read.
  """
  path = Path(pattern)
  ways = [Way.to(Path("/") if path.is_absolute() else Path())]
  names = path.parts[path.is_absolute() :]
  fixed = len(list(itertools.takewhile(lambda name: not glob.has_magic(name), names)))
  for number, name in enumerate(names, 1):
    folders = (way for way in ways if os.path.isdir(way.path))
    if name == "**":
      found = list(walk(folders))
      ways = [folder for folder, _ in found]
      if number == len(names):
        ways += [way for _, rest in found for way in rest if not way.is_hidden()]
    elif glob.has_magic(name):
      regex = re.compile(fnmatch.translate(name), re.IGNORECASE if ignore_case else 0)
      hidden = name.startswith(".")
      entries = (way for folder in folders for way in folder.entries())
      ways = [w for w in entries if w.is_hidden() == hidden and regex.match(w.path.name)]
    else:
      children = (folder.enter(name) for folder in folders)
      ways = [way for way in children if os.path.lexists(way.path)]
    if number <= fixed:
      ways = [way.start() for way in ways]
    ways = once(ways, lambda way: way.split)
  return [way for way in ways if os.path.isdir(way.path)] if pattern.endswith("/") else ways


def once(ways: Iterable[Way], apart: Callable[[Way], object] = lambda way: None) -> list[Way]:
  """The first way, by links and path, to each file or folder. Hard links are one file.

  Args:
    ways: ways in any order.
    apart: ways with different values of this function count as different files.
  """
  found: dict[object, Way] = {}
  for way in sorted(ways):
    found.setdefault((_identity(way), apart(way)), way)
  return list(found.values())


def one_split(ways: Iterable[Way], split_of: Callable[[Way], str]) -> list[Way]:
  """Each file once. Of several ways, one with test is chosen, else validation, else train.

  Args:
    ways: ways in any order.
    split_of: the split that the name of a way contains; "" if none.
  """
  held_out_first = [*reversed(SPLITS), ""]
  found: dict[object, Way] = {}
  for way in sorted(ways, key=lambda way: (held_out_first.index(split_of(way)), way)):
    found.setdefault(_identity(way), way)
  return list(found.values())


def unreadable(path: Path, why: object) -> InputError:
  """The error for a file or folder of a corpus that cannot be read."""
  return InputError(f"{path}: cannot be read ({why}); repair or remove it")


def _identity(way: Way) -> object:
  try:
    status = os.stat(way.path)
  except OSError:  # a link to nothing: the reader reports it
    return way.real
  # Inode numbers only for hard links: some network file systems invent them.
  linked = status.st_nlink > 1 and not os.path.isdir(way.path)
  return (status.st_dev, status.st_ino) if linked else way.real
