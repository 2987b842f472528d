"""Fields that flags set without effect: each section says in `where` what is read."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from infini_jax.config.resolve import DEFAULTS, field_value
from infini_jax.config.schema import SECTIONS, Config
from infini_jax.config.systems import SYSTEMS


def unread(
  given: ml_collections.ConfigDict | dict[str, Any],
  config: Config,
  flags: Iterable[tuple[str, str]],
  asked: Mapping[str, str] | None = None,
) -> str | None:
  """A line about fields that flags set, but that the other fields leave without effect.

  A field that a flag sets to its default is not named, nor what a config file sets: it may hold
  fields for what a flag turns on.

  Args:
    given: the sections before `resolve`, which drops those of other memory systems.
    config: the config that they give.
    flags: (section, field) of each flag.
    asked: the tasks of an evaluation, each with its dataset, "" for that of the run; None for other
      commands, whose fields of `evaluation` wait for an evaluation of any task.

  Returns:
    The line, or None if every field has an effect.
  """
  values = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else given
  found: dict[str, list[str]] = {}
  for section, name in flags:
    usual = getattr(SECTIONS[section](), name)
    if field_value(section, name, values[section][name]) == usual:
      continue
    if setting := _without_effect(section, name, config, asked):
      found.setdefault(setting, []).append(f"config.{section}.{name}")
  parts = (
    f"{', '.join(names)} {'have' if len(names) > 1 else 'has'} no effect with {setting}"
    for setting, names in found.items()
  )
  return "; ".join(parts) or None


def _without_effect(
  section: str, name: str, config: Config, asked: Mapping[str, str] | None
) -> str:
  """The setting with which a field has no effect; empty if it has one."""
  m = config.model
  if section in SYSTEMS and section not in m.by_system:
    return f"config.{m.setting}"
  if (section, name) == ("model", "mixer"):
    used = not m.pattern or m.mixer in (*m.pattern, DEFAULTS.model.mixer)
    return "" if used else f"config.{m.setting}"
  for condition, names in getattr(SECTIONS[section], "where", {}).items():
    if names == "*" or name in names.split():
      field, _, words = condition.partition("=")
      of_task = field == "task.name"
      if of_task and section == "evaluation" and asked is None:
        continue
      read, setting = _tasks(config, asked) if of_task else _read(field, config)
      if not (read & {*words.split("|")} if words else any(read)):
        return setting
  return ""


def _read(field: str, config: Config) -> tuple[set[Any], str]:
  """The value of a condition's field, in a set, and the setting that makes it so."""
  section, _, name = field.partition(".")
  if section == "memory":
    return {getattr(config.model.memory, name)}, f"config.{config.model.setting}"
  value = getattr(config.sections()[section], name)
  return {value}, f"config.{field}={value!r}"


def _tasks(config: Config, asked: Mapping[str, str] | None) -> tuple[set[Any], str]:
  """The tasks that a command trains on or evaluates, and the setting that chooses them."""
  task, other = config.task.name, config.evaluation.task
  if asked is None:
    return {task, other}, f"config.task.name={task!r}"
  if asked:
    return {dataset or other or task for dataset in asked.values()}, f"--task={','.join(asked)}"
  if other:
    return {other}, f"config.evaluation.task={other!r}"
  return {task}, f"config.task.name={task!r}"
