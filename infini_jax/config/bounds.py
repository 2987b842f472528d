"""Fields with bounds: the declaration of a field contains the bounds of its values."""

import dataclasses
import functools
import math
from typing import Any


class InputError(ValueError):
  """A wrong input. Its text is one line: the thing, the value, the remedy. The exit status is 2."""

  def __init__(self, text: str):
    # A name may contain newlines or control characters.
    shown = (c if c.isprintable() else repr(c)[1:-1] for c in text)
    super().__init__("".join(shown))


def choice(default: str, choices: tuple[str, ...]) -> Any:
  """A field whose value is one of these words."""
  return dataclasses.field(default=default, metadata={"choices": choices})


def choices(default: tuple[str, ...], words: tuple[str, ...]) -> Any:
  """A field whose value is a tuple of some of these words."""
  return dataclasses.field(default=default, metadata={"choices": words})


def above(bound: float, default: Any, most: float = math.inf) -> Any:
  """A field whose number, or numbers, must be larger than the bound and at most `most`."""
  return dataclasses.field(default=default, metadata={"above": bound, "most": most})


def at_least(bound: float, default: Any, most: float = math.inf) -> Any:
  """A field whose number, or numbers, must be at least the bound and at most `most`."""
  return dataclasses.field(default=default, metadata={"least": bound, "most": most})


def check_bounds(name: str, section: Any) -> None:
  """Raises InputError for the first field of a section that is out of its bounds.

  Args:
    name: the name of the section.
    section: the section, a frozen dataclass.
  """
  kind: Any = type(section)
  for field in _bounded(kind):
    value, what = getattr(section, field.name), field.metadata
    several = isinstance(value, tuple)
    for one in value if several else (value,):
      if words := what.get("choices"):
        if one not in words:
          named = ", ".join(filter(None, words))
          raise InputError(f"config.{name}.{field.name}={one!r}: choose one of {named}")
        continue
      shown = (
        f"config.{name}.{field.name}: {one}" if several else f"config.{name}.{field.name}={one}"
      )
      if "above" in what and one <= what["above"]:
        raise InputError(f"{shown}: must be more than {what['above']}")
      least, most = what.get("least", -math.inf), what.get("most", math.inf)
      if not least <= one <= most:
        if most == math.inf:
          raise InputError(f"{shown}: must be {f'at least {least}' if least else '0 or more'}")
        raise InputError(f"{shown}: choose {max(least, what.get('above', least)):g} to {most:g}")


@functools.cache
def _bounded(section: Any) -> tuple[dataclasses.Field, ...]:
  """The fields of a section that have bounds."""
  return tuple(field for field in dataclasses.fields(section) if field.metadata)
