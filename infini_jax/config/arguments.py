"""From a command line to a `Config`: the config file, and the fields that flags set."""

import ast
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from infini_jax.config import files
from infini_jax.config.base import base_config, based_on
from infini_jax.config.bounds import InputError
from infini_jax.config.resolve import DEFAULTS, LARGEST, check_name, field_value, resolve
from infini_jax.config.schema import SECTIONS, Config
from infini_jax.config.unread import unread

EXPECTED = {bool: "True or False", int: "a whole number", float: "a number, such as 0.001 or 1e-3"}
TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load_config(
  arguments: Sequence[str],
  own: Config | None = None,
  say: Callable[[str], None] = lambda line: None,
  asked: Mapping[str, str] | None = None,
) -> Config:
  """The config of `--config=FILE --config.a.b=value ...`.

  A space may replace the = between a flag and its value. The last value of a field is used.

  Args:
    arguments: the arguments of the command.
    own: the config of an existing run. With it, the file is optional and changes only the fields
      that it sets; all other fields are as in `own`.
    say: called with a line about flags that have no effect.
    asked: the tasks of an evaluation (see `unread`).

  Raises:
    InputError: no such file, a file that fails, an unknown field or a wrong value.
  """
  given: list[str] = []
  fields: dict[tuple[str, str], Any] = {}
  for name, text in _pairs(arguments):
    if name == "--config":
      given.append(text)
    else:
      section, _, field = name.removeprefix("--config.").partition(".")
      check_name(section, field)
      fields[section, field] = _value(section, field, text)
  if not given and own is None:
    raise InputError("--config=FILE is missing; choose one in configs/, such as configs/demo.py")
  if len(given) > 1:
    raise InputError(
      f"--config is given {len(given)} times ({', '.join(given)}): name one file, and set what "
      f"differs as --config.section.field=value"
    )
  start = DEFAULTS if own is None else own
  with based_on(start):
    config = files.run(given[0]) if given else base_config()
  for (section, field), value in fields.items():
    _set(config, section, field, value)
  resolved = resolve(config, start)
  if line := unread(config, resolved, fields, asked):
    say(line)
  return resolved


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Every flag with its text, which is after the = or in the next argument."""
  rest = iter(arguments)
  for argument in rest:
    name, equals, text = argument.partition("=")
    parts = name.split(".", 2)
    if parts[0] != "--config" or len(parts) == 2 or not all(parts):
      raise InputError(f"unknown argument {argument!r}; fields: --config.section.field=value")
    if not equals:
      following = next(rest, "--")
      if following.startswith("--"):
        raise InputError(f"{name} has no value: {name}=VALUE")
      text = following
    yield name, text


def _set(config: Any, section: str, field: str, value: Any) -> None:
  """Sets a field of the config that a file returned. If it is no config, `resolve` reports it."""
  if isinstance(config, ml_collections.ConfigDict):
    with config.unlocked(), config.ignore_type():  # the text has its type
      if section not in config:
        config[section] = ml_collections.ConfigDict()
      if isinstance(config[section], ml_collections.ConfigDict):
        config[section][field] = value
  elif isinstance(config, dict) and isinstance(config.setdefault(section, {}), dict):
    config[section][field] = value


def _value(section: str, field: str, text: str) -> Any:
  """The value of a text for a field.

  Raises:
    InputError: the text is not a value of the field's type.
  """
  (found,) = [f for f in dataclasses.fields(SECTIONS[section]) if f.name == field]
  want = type(found.default)
  try:
    if want is tuple:
      value = _several(text, typing.get_args(found.type)[0])
    else:
      value = READ[want](text)
  except ValueError:
    expected = EXPECTED[want]
    if want is int and (whole := _written_otherwise(text)):
      expected += f"; write {whole}"
    raise InputError(f"--config.{section}.{field}={text}: expected {expected}") from None
  return field_value(section, field, value)


def _truth(text: str) -> bool:
  if text.strip().lower() not in TRUTHS:
    raise ValueError
  return TRUTHS[text.strip().lower()]


def _written_otherwise(text: str) -> str:
  """The digits of a whole number that is written as a float, such as 1e3; else empty."""
  try:
    number = float(text)
  except ValueError:
    return ""
  return f"{number:.0f}" if number.is_integer() and abs(number) <= LARGEST else ""


def _whole(text: str) -> int:
  """A whole number as Python writes it; leading zeros are allowed and do not mean octal."""
  return int(text, 16 if text.strip().lower().lstrip("+-").startswith("0x") else 10)


READ: dict[type, Callable[[str], Any]] = {str: str, bool: _truth, int: _whole, float: float}


def _several(text: str, want: type) -> Any:
  """A tuple or list as Python writes it, or one value; words need no quotes."""
  try:
    return ast.literal_eval(text.strip())
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    if want is not str:
      return text
  inner = text.strip()
  if inner[:1] + inner[-1:] in ("()", "[]"):
    inner = inner[1:-1]
  inner = inner.strip().removesuffix(",")  # of a tuple with one word
  return tuple(word.strip() for word in inner.split(","))
