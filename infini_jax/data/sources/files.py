"""Files by pattern, for the kinds that are lists of files: which there are, and their splits."""

import glob
import os
import re
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
    InputError: a pattern that nothing matches, or no file for train.
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
      inside = glob.iglob("**", root_dir=folder, recursive=True)  # hidden ones are skipped
      some += [folder / name for name in inside if name.endswith(suffixes)]
    if not some:
      raise InputError(
        f"corpus {spec!r}: no file matches {pattern!r}; give files, folders of "
        f"{' '.join(suffixes)} files, or a pattern, with commas between"
      )
    paths |= {file.absolute() for file in some}
  if not paths:
    raise InputError(f"corpus {spec!r}: names no file; write {spec.partition(':')[0]}:FILES")
  root = os.path.commonpath([path.parent for path in paths])
  names = {path: path.relative_to(root).as_posix() for path in paths}
  words = {path: NAMED.findall(name.lower()) for path, name in names.items()}
  splits = {path: CALLED[w[-1]] if w else "train" for path, w in words.items()}
  if "train" not in splits.values():
    raise InputError(
      f"corpus {spec!r}: all files are named for validation or test; add files for train"
    )
  rule, note = split_rule(set(splits.values()))
  files = [File(p, names[p], rule[splits[p]], p.stat().st_size) for p in paths]
  return sorted(files, key=lambda file: file.name), note
