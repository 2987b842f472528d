r"""How names stand in a spec: commas, `?`, `&` and `=` divide it, but after a backslash."""

import os
import re
from pathlib import Path

MARKS = r"\\,?&=:*\[\] "  # inside the brackets of a regular expression
ESCAPED = re.compile(rf"\\([{MARKS}])")


def cut(text: str, at: str, most: int = -1) -> list[str]:
  r"""The pieces of a spec between marks; each still holds its backslashes.

  Args:
    text: the spec, or a piece of it.
    at: the mark that divides it; not where a backslash stands in front of it.
    most: how often it is cut; -1 for everywhere.
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
  """The folder or store of a spec without a kind, which needs no backslash and may have some."""
  return Path(spec if os.path.lexists(spec) else plain(spec))


def glob_of(text: str) -> str:
  r"""The pattern that a piece of a spec writes, as `fnmatch` reads it: `\*` matches a star."""
  return ESCAPED.sub(lambda match: f"[{match[1]}]" if match[1] in "*?[" else match[1], text)


def advice(text: str) -> str:
  """What to say of a spec that may be divided where its author meant a name; "" if it is not."""
  if not re.search(rf"[{MARKS}]", text):
    return ""
  return r"; in a name, put a backslash before , ? & = : * [ ] and spaces, such as a\,b"
