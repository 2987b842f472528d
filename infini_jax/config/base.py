"""The config that a config file edits: every field with its default, locked."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_collections

from infini_jax.config.bounds import InputError
from infini_jax.config.migration import moved_to
from infini_jax.config.resolve import DEFAULTS, check_name, field_value
from infini_jax.config.schema import SECTIONS, Config

_base = contextvars.ContextVar("base", default=DEFAULTS)


def base_config() -> ml_collections.ConfigDict:
  """Every field with its default, in a locked ConfigDict for a config file to edit.

  When a run is evaluated, the fields have the values of the run's config instead of the defaults.
  """
  start = _base.get().sections()
  sections = {name: start.get(name, section()) for name, section in SECTIONS.items()}
  return _made("", {name: dataclasses.asdict(one) for name, one in sections.items()}).lock()


@contextlib.contextmanager
def based_on(config: Config) -> Iterator[None]:
  """In the body, `base_config()` returns the values of this config instead of the defaults."""
  token = _base.set(config)
  try:
    yield
  finally:
    _base.reset(token)


class _Fields(ml_collections.ConfigDict):
  """The whole config or a section of it. A wrong value is refused in the line that sets it."""

  _section: str | None = None  # its name; "" for the whole config. None: a copy of ml_collections
  _whole: Any = None  # the config that it is a section of

  def __getitem__(self, key: str) -> Any:
    self._check_name(key)
    return super().__getitem__(key)

  def __setitem__(self, key: str, value: Any) -> None:
    if self._section and self._whole is not None and key not in self._fields:
      # The name is from an older config file, or from an older run.json that the file reads.
      if place := moved_to(self._section, key, self._whole["model"]["mixer"]):
        section, key = place
        if section in self._whole:
          self._whole[section][key] = value
        return
    self._check_name(key)
    if self._section is not None and not isinstance(value, ml_collections.FieldReference):
      try:
        value = field_value(self._section, key, value) if self._section else _section(key, value)
      except InputError as error:
        raise TypeError(str(error)) from None
    super().__setitem__(key, value)

  def _check_name(self, key: str) -> None:
    if self._section is not None and key not in self._fields:
      try:
        check_name(*([self._section, key] if self._section else [key]))
      except InputError as error:
        raise KeyError(str(error)) from None


def _made(name: str, values: Any) -> _Fields:
  made = _Fields()
  object.__setattr__(made, "_section", name)
  for key, value in values.items():
    made[key] = value
  if not name:
    for section in made.values():
      object.__setattr__(section, "_whole", made)
  return made


def _section(name: str, values: Any) -> _Fields:
  if not isinstance(values, dict | ml_collections.ConfigDict):
    raise InputError(f"config.{name}={values!r}: a section of fields is expected here")
  return _made(name, values)
