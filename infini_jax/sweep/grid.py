"""The grid of a sweep: from `--grid` to one checked config for each combination of values."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from infini_jax.config import Config, InputError, check_name, load_config
from infini_jax.digests import short_hash

FORM = "write --grid section.field=VALUE,VALUE, or for several that go together a,b=(1,2),(3,4)"
CLOSING = {"(": ")", "[": "]"}
LONGEST = 120  # characters of a run's name
UNUSUAL = re.compile(r"[^\w.+\-(),=@]")  # characters that a run's name does not have


class Axis(NamedTuple):
  """One `--grid`: fields that change together, and their values as a user types them."""

  fields: tuple[str, ...]  # section.field
  values: tuple[tuple[str, ...], ...]  # one text for each field


class Combination(NamedTuple):
  """One run of a sweep."""

  name: str  # of its folder
  flags: tuple[str, ...]  # the arguments of the command that set the fields of the grid
  config: Config


def read_grid(texts: Sequence[str]) -> tuple[Axis, ...]:
  """The axes of a grid.

  Args:
    texts: the values of `--grid`. Commas divide values, except in brackets and in quotes.

  Raises:
    InputError: not of this form, an unknown field, no value, or a field that is given twice.
  """
  if not texts:
    raise InputError(f"--grid is missing: {FORM}")
  axes = tuple(map(_axis, texts))
  fields = [field for axis in axes for field in axis.fields]
  for field in fields:
    if fields.count(field) > 1:
      raise InputError(f"--grid gives config.{field} twice: give all its values in one --grid")
  return axes


def combinations(axes: Sequence[Axis], arguments: Sequence[str]) -> tuple[Combination, ...]:
  """Every combination of the values, the last axis first, with its config.

  Args:
    axes: the grid.
    arguments: of the command: the config file, and the fields that are the same in all runs.

  Raises:
    InputError: a field of the grid is set for all runs too, a combination is not a valid config, or
      two of them are the same.
  """
  fields = [field for axis in axes for field in axis.fields]
  for argument in arguments:
    if (name := argument.partition("=")[0].removeprefix("--config.")) in fields:
      raise InputError(f"--config.{name} is in --grid too: leave one of them out")
  made: dict[str, Combination] = {}
  for values in itertools.product(*(axis.values for axis in axes)):
    texts = [text for value in values for text in value]
    flags = [f"--config.{name}={text}" for name, text in zip(fields, texts, strict=True)]
    try:
      config = load_config([*arguments, *flags])
    except InputError as error:
      raise InputError(f"{' '.join(flags)}: {error}") from None
    name = _name(fields, config)
    if name in made:
      raise InputError(f"--grid gives {name} twice: leave one of the values out")
    made[name] = Combination(name, tuple(flags), config)
  return tuple(made.values())


def value_of(config: Config, field: str) -> Any:
  """The value of a field, by its section and name joined by a dot."""
  section, _, name = field.partition(".")
  return getattr(config.sections().get(section), name, None)  # None: of another memory system


def with_values(fields: Sequence[str], old: Config, new: Config) -> Config:
  """`old` with the values that `new` has in these fields; nothing is checked."""
  changes: dict[str, dict[str, Any]] = {}
  for field in fields:
    section, _, name = field.partition(".")
    if (value := value_of(new, field)) is not None:
      changes.setdefault(section, {})[name] = value
  return old.with_fields(**changes)


def short(fields: Sequence[str]) -> dict[str, str]:
  """Each field without its section, where this is clear."""
  last = [field.partition(".")[2] for field in fields]
  return {f: name if last.count(name) == 1 else f for f, name in zip(fields, last, strict=True)}


def _axis(text: str) -> Axis:
  names, equals, values = text.partition("=")
  fields = tuple(name.strip().removeprefix("config.") for name in names.split(","))
  if not equals or not all("." in field for field in fields):
    raise InputError(f"--grid={text}: {FORM}")
  for field in fields:
    check_name(*field.split(".", 1))
  found = _divided(values, text)
  if not found or not all(found):
    raise InputError(f"--grid={text}: {'a value is empty' if found else 'no values'}; {FORM}")
  if len(fields) == 1:
    return Axis(fields, tuple((_unquoted(value),) for value in found))
  rows = []
  for value in found:
    inner = _divided(value[1:-1], text) if value[0] + value[-1] in ("()", "[]") else []
    if len(inner) != len(fields):
      raise InputError(
        f"--grid={text}: {value} is not a value for each of the {len(fields)} fields; {FORM}"
      )
    rows.append(tuple(map(_unquoted, inner)))
  return Axis(fields, tuple(rows))


def _divided(values: str, whole: str) -> list[str]:
  """The texts between commas that are in no bracket and in no quotes."""
  parts, open_, quote = [""], list[str](), ""
  for c in values:
    if quote or c in "'\"":
      quote = "" if c == quote else quote or c
    elif c in CLOSING:
      open_.append(CLOSING[c])
    elif c in CLOSING.values() and (not open_ or open_.pop() != c):
      raise InputError(f"--grid={whole}: {c} closes no bracket; {FORM}")
    if c == "," and not open_ and not quote:
      parts.append("")
    else:
      parts[-1] += c
  if open_ or quote:
    raise InputError(f"--grid={whole}: {quote or open_[-1]} is missing at the end; {FORM}")
  parts = [part.strip() for part in parts]
  return [] if parts == [""] else parts


def _unquoted(text: str) -> str:
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _name(fields: Sequence[str], config: Config) -> str:
  """The name of a run: the same for the same values, however they are typed."""
  named = short(fields)
  whole = ",".join(f"{named[field]}={_shown(value_of(config, field))}" for field in fields)
  name = UNUSUAL.sub("_", whole)
  if name == whole and len(name) <= LONGEST:
    return name
  digest = short_hash(whole.encode(), size=4)
  return f"{name[:LONGEST]}-{digest}"


def _shown(value: Any) -> str:
  return f"({','.join(map(str, value))})" if isinstance(value, tuple) else str(value)
