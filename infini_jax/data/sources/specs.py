r"""The syntax of specs: commas, `?`, `&` and `=` divide a spec, unless after a backslash."""

import os
import re
from pathlib import Path

MARKS = r"\\,?&=:*\[\] "  # for the inside of [...] in a regular expression
ESCAPED = re.compile(rf"\\([{MARKS}])")


def cut(text: str, at: str, most: int = -1) -> list[str]:
  r"""The pieces of a spec between separators; each piece keeps its backslashes.

  Args:
    text: the spec, or a piece of it.
    at: the separator; with a backslash before it, it does not separate.
    most: the most cuts; -1 for no limit.
  """
  pieces: list[str] = []
  start = 0
  for match in re.finditer(rf"{ESCAPED.pattern}|{re.escape(at)}", text):
    if match[0] == at and len(pieces) != most:
      pieces.append(text[start : match.start()])
      start = match.end()
  return [*pieces, text[start:]]


def plain(text: str) -> str:
  r"""The name that a piece of a spec writes: `a\,b` is "a,b"."""
  return ESCAPED.sub(r"\1", text)


def folder_of(spec: str) -> Path:
  """The folder or store of a spec without a kind. Backslashes in it are allowed, but not needed."""
  return Path(spec if os.path.lexists(spec) else plain(spec))


def glob_of(text: str) -> str:
  r"""The pattern for `fnmatch` that a piece of a spec writes: `\*` matches a star."""
  return ESCAPED.sub(lambda match: f"[{match[1]}]" if match[1] in "*?[" else match[1], text)


def advice(text: str) -> str:
  """The end of an error about a spec: how to write separators in a name; "" if it has none."""
  if not re.search(rf"[{MARKS}]", text):
    return ""
  return r"; in a name, put a backslash before , ? & = : * [ ] and spaces, such as a\,b"
