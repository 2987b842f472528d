"""Files below folders, and of patterns: each once, however many links and paths lead to it."""

import fnmatch
import glob
import heapq
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from infini_jax.config import InputError


class Way(NamedTuple):
  """A path to a file or folder. Ways sort by the links that they lead through.

  Attributes:
    links: how many of its names are symbolic links.
    path: as it is written.
    real: where it leads, without links.
  """

  links: int
  path: Path
  real: str

  @classmethod
  def to(cls, path: Path) -> "Way":
    """A path from the root or the current folder; `..` is resolved."""
    way = cls(0, Path("/") if path.is_absolute() else Path.cwd(), "/")
    way = way._replace(real=os.path.realpath(way.path))
    for name in path.parts[path.is_absolute() :]:
      way = way.enter(name)
    return way

  def enter(self, name: str) -> "Way":
    """The way to what has this name in this folder."""
    if name == "..":
      parent = os.path.dirname(self.real)
      return Way(self.links, Path(parent), parent)
    return self._enter(name, os.path.islink(self.path / name))

  def entries(self) -> "list[Way]":
    """The ways to all that stands in this folder.

    Raises:
      InputError: it cannot be read.
    """
    try:
      with os.scandir(self.path) as found:
        return [self._enter(entry.name, entry.is_symlink()) for entry in found]
    except OSError as error:
      raise unreadable(self.path, error.strerror) from None

  def _enter(self, name: str, is_link: bool) -> "Way":
    path = self.path / name
    real = os.path.realpath(path) if is_link else os.path.join(self.real, name)
    return Way(self.links + is_link, path, real)

  def is_hidden(self) -> bool:
    """Whether its last name begins with a dot."""
    return self.path.name.startswith(".")


def walk(starts: Iterable[Way], skip: Collection[str] = ()) -> Iterator[tuple[Way, list[Way]]]:
  """Folders and all folders below them, each once, with what else stands in each.

  Links are followed, the fewest first: what can be reached without one is, and nothing goes round.
  Hidden folders, and those to skip, stand among the rest and are not entered.

  Raises:
    InputError: a folder that cannot be read.
  """
  queue = list(starts)
  heapq.heapify(queue)
  seen: set[str] = set()
  while queue:
    folder = heapq.heappop(queue)
    if folder.real in seen:
      continue
    seen.add(folder.real)
    rest = []
    for way in folder.entries():
      if way.is_hidden() or way.path.name in skip or not os.path.isdir(way.path):
        rest.append(way)
      else:
        heapq.heappush(queue, way)
    yield folder, rest


def expand(pattern: str, ignore_case: bool = False) -> list[Way]:
  """What a pattern matches, as a shell with `**` would; each file and folder once.

  Raises:
    InputError: a folder that cannot be read.
  """
  path = Path(pattern)
  ways = [Way.to(Path("/") if path.is_absolute() else Path())]
  names = path.parts[path.is_absolute() :]
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
    ways = once(ways)
  return [way for way in ways if os.path.isdir(way.path)] if pattern.endswith("/") else ways


def once(ways: Iterable[Way]) -> list[Way]:
  """Of the ways to one file or folder the first, by links and path. Hard links are one file."""
  found: dict[object, Way] = {}
  for way in sorted(ways, key=lambda way: (way.links, str(way.path))):
    found.setdefault(_identity(way), way)
  return list(found.values())


def unreadable(path: Path, why: object) -> InputError:
  """The error of a file or folder of a corpus."""
  return InputError(f"{path}: cannot be read ({why}); repair or remove it")


def _identity(way: Way) -> object:
  try:
    status = os.stat(way.path)
  except OSError:  # of a link to nothing, which the reader will name
    return way.real
  # Not the numbers of every file: some network file systems make them up.
  linked = status.st_nlink > 1 and not os.path.isdir(way.path)
  return (status.st_dev, status.st_ino) if linked else way.real
