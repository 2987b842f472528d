"""Fields with bounds: the declaration of a field contains the bounds of its values."""

import dataclasses
import functools
import math
from typing import Any

# Which fields of a section are read under a condition only (`config.unread`): conditions, and the
# fields of each ("*": all). "adapters.rank": that field is set. "optimizer.name=muon|lion": it has
# one of these values; "task.name=...": a task that is trained or evaluated. "memory.gated": a fact
# of the memory system. If a field has several conditions, all must hold.
Where = dict[str, str]


class InputError(ValueError):
  """A wrong input. Its text is one line: the thing, the value, the remedy. The exit status is 2."""

  def __init__(self, text: str):
    # A name may contain newlines or control characters.
    shown = (c if c.isprintable() else repr(c)[1:-1] for c in text)
    super().__init__("".join(shown))


# Below, `more` are other facts of a field:
#   also: a value out of the bounds that has a meaning of its own
#   says: the text of the error, for bounds that need words
#   numbers: of `run`: other values give other numbers, so the value stays with the model


def choice(default: str, choices: tuple[str, ...], **more: Any) -> Any:
  """A field whose value is one of these words."""
  return _field(default, choices=choices, **more)


def choices(default: tuple[str, ...], words: tuple[str, ...], **more: Any) -> Any:
  """A field whose value is a tuple of some of these words."""
  return _field(default, choices=words, **more)


def above(bound: float, default: Any, most: float = math.inf, **more: Any) -> Any:
  """A field whose number, or numbers, must be larger than the bound and at most `most`."""
  return _field(default, above=bound, most=most, **more)


def at_least(bound: float, default: Any, most: float = math.inf, **more: Any) -> Any:
  """A field whose number, or numbers, must be at least the bound and at most `most`."""
  return _field(default, least=bound, most=most, **more)


def _field(default: Any, **facts: Any) -> Any:
  return dataclasses.field(default=default, metadata=facts)


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
    shown = f"config.{name}.{field.name}"
    for one in value if several else (value,):
      if wrong := _wrong(one, what):
        colon = ": " if several and "choices" not in what else "="
        raise InputError(f"{shown}{colon}{one!r}: {what.get('says') or wrong}")


def _wrong(value: Any, what: Any) -> str:
  """How a value is out of the bounds of a field, `what`; empty if it is not."""
  if words := what.get("choices"):
    return "" if value in words else f"choose one of {', '.join(filter(None, words))}"
  if "also" in what and value == what["also"]:
    return ""
  if "above" in what and value <= what["above"]:
    return f"must be more than {what['above']}"
  least, most = what.get("least", -math.inf), what.get("most", math.inf)
  if least <= value <= most:
    return ""
  if most == math.inf:
    return f"must be {f'at least {least}' if least else '0 or more'}"
  return f"choose {max(least, what.get('above', least)):g} to {most:g}"


@functools.cache
def _bounded(section: Any) -> tuple[dataclasses.Field, ...]:
  """The fields of a section that have bounds."""
  bounds = {"choices", "above", "least"}
  return tuple(field for field in dataclasses.fields(section) if bounds & field.metadata.keys())
