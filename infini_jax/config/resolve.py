"""From the sections that a user writes to the frozen `Config`; the difference of two configs."""

import dataclasses
import difflib
import json
import math
import typing
from typing import Any

import ml_collections

from infini_jax.config.bounds import InputError, check_bounds
from infini_jax.config.checks import check
from infini_jax.config.migration import migrated, moved_to
from infini_jax.config.schema import CHANGEABLE, SECTIONS, Config, from_sections
from infini_jax.config.systems import SYSTEMS

DEFAULTS = Config()
LARGEST = 2**31 - 1  # JAX uses 32 bits, and drops the higher bits of a larger seed without an error


def resolve(config: ml_collections.ConfigDict | dict[str, Any], base: Config = DEFAULTS) -> Config:
  """Freezes and checks a config.

  Args:
    config: sections of fields.
    base: gives the fields that `config` does not set.

  Raises:
    InputError: an unknown field, a value of the wrong type, or fields that contradict each other.
  """
  values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
  if not isinstance(values, dict):
    raise InputError(
      f"config={repr(values):.60}: get_config() must return the config of base_config()"
    )
  sections = base.sections()
  for name, section in values.items():
    if name in SYSTEMS and name not in SECTIONS and section == {}:
      continue  # a system without fields
    check_name(name)
    sections[name] = _section(name, sections.get(name, SECTIONS[name]()), section)
  for name, section in sections.items():  # also the sections that this model does not read
    check_bounds(name, section)
  resolved = from_sections(sections)
  check(resolved)
  return resolved


def from_json(text: str) -> Config:
  """The config of a text that `Config.to_json` wrote, also in an older version."""
  return resolve(migrated(json.loads(text)))


def check_name(section: str, field: str | None = None) -> None:
  """Raises InputError, with the most similar name, if there is no such section or field."""
  if section not in SECTIONS:
    raise InputError(f"config.{section}: no such section{_did_you_mean(section, SECTIONS)}")
  fields = [f.name for f in dataclasses.fields(SECTIONS[section])]
  if field is not None and field not in fields:
    if moved := moved_to(section, field):
      raise InputError(f"config.{section}.{field} is now config.{'.'.join(moved)}: set that")
    raise InputError(f"config.{section}.{field}: no such field{_did_you_mean(field, fields)}")


def field_value(section: str, name: str, value: Any) -> Any:
  """The value, in the type of the field; a whole number is accepted for a float.

  Raises:
    InputError: no such field, a value of another type, or a number that is too large or not finite.
  """
  check_name(section, name)
  (field,) = [f for f in dataclasses.fields(SECTIONS[section]) if f.name == name]
  want = type(field.default)
  if want is float and type(value) is int:
    value = _float(value)
  if want is tuple:
    value = _tuple(f"{section}.{name}", typing.get_args(field.type)[0], value)
  elif type(value) is not want:
    remedy = f"; write {value:.0f}" if want is int and _is_whole(value) else ""
    raise InputError(f"config.{section}.{name}={value!r}: expected {want.__name__}{remedy}")
  for number in value if want is tuple else (value,):
    if isinstance(number, float) and not math.isfinite(number):
      raise InputError(f"config.{section}.{name}={value!r}: must be a finite number")
    if isinstance(number, int) and number > LARGEST:
      raise InputError(f"config.{section}.{name}={value!r}: must be at most {LARGEST}")
  return value


def difference(old: Config, new: Config) -> str | None:
  """A line about the first field that makes `new` another experiment than `old`; None if none."""
  were, are = old.sections(), new.sections()
  for section in SECTIONS:
    free = CHANGEABLE.get(section, ())
    if free is None or section not in were or section not in are:
      continue
    for field in dataclasses.fields(SECTIONS[section]):
      before, after = getattr(were[section], field.name), getattr(are[section], field.name)
      if field.name not in free and before != after:
        return f"config.{section}.{field.name}: {before!r} there, {after!r} here"
  return None


def _section(section: str, base: Any, values: Any) -> Any:
  if not isinstance(values, dict):
    raise InputError(f"config.{section}={values!r}: a section of fields is expected here")
  checked = {name: field_value(section, name, value) for name, value in values.items()}
  return dataclasses.replace(base, **checked)


def _float(number: int) -> float:
  """An integer as a float; infinite if it is too large for a float."""
  try:
    return float(number)
  except OverflowError:
    return math.inf


def _is_whole(value: Any) -> bool:
  return isinstance(value, float) and value.is_integer()


def _tuple(name: str, want: type, values: Any) -> tuple:
  """A tuple of values of a type; a list, as JSON writes it, is accepted too."""
  values = tuple(values) if isinstance(values, list | tuple) else (values,)
  if want is float:
    values = tuple(_float(v) if type(v) is int else v for v in values)
  if any(type(v) is not want for v in values):
    raise InputError(f"config.{name}={values!r}: expected several {want.__name__}")
  return values


def _did_you_mean(name: str, names: Any) -> str:
  close = difflib.get_close_matches(name, list(names), n=1)
  return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
