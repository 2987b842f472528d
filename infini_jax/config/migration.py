"""The new places of fields of older configs, so that older run.json files, exports and states load.

Until November 2026 the section `model` held the fields of all memory systems, of the family, of
adapters and of the machine, `task` held those of needles, and `train` those of logging.
"""

import dataclasses
from typing import Any

from infini_jax.config.schema import (
  AdaptersConfig,
  FamilyConfig,
  LogConfig,
  NeedleConfig,
  RunConfig,
)
from infini_jax.config.systems import SYSTEMS

_names = lambda section: [field.name for field in dataclasses.fields(section)]

# (section, field) to its new place. A field that several systems have goes to the chosen system.
MOVED: dict[tuple[str, str], tuple[str, str]] = {
  **{("model", name): (system, name) for system in SYSTEMS for name in _names(SYSTEMS[system])},
  **{("model", name): ("family", name) for name in _names(FamilyConfig)},
  **{("model", name): ("run", name) for name in _names(RunConfig)},
  **{("model", f"lora_{name}"): ("adapters", name) for name in _names(AdaptersConfig)},
  **{("task", name): ("needle", name) for name in _names(NeedleConfig) if name != "digits"},
  **{("train", name): ("log", name) for name in _names(LogConfig)},
  ("train", "compilation_cache"): ("run", "compilation_cache"),
}


def migrated(sections: dict[str, Any]) -> dict[str, Any]:
  """The sections of a config with all fields at their new places.

  Args:
    sections: the sections as read from JSON, in the older or the new form.
  """
  made: dict[str, Any] = {}
  own = lambda section: sections[section] if isinstance(sections.get(section), dict) else {}
  if {"family", "digits"} <= own("task").keys():
    made["needle"] = {"digits": own("task")["digits"]}
  mixer = own("model").get("mixer", "infini")
  for section, fields in sections.items():
    if not isinstance(fields, dict):
      made[section] = fields  # `resolve` refuses it
      continue
    made.setdefault(section, {})
    for name, value in fields.items():
      place = moved_to(section, name, mixer)
      if place is not None and not (place[0] in SYSTEMS and place[0] != mixer):
        made.setdefault(place[0], {})[place[1]] = value
      elif place is None:
        made.setdefault(section, {})[name] = value
  return made


def moved_to(section: str, name: str, mixer: str = "infini") -> tuple[str, str] | None:
  """The new place of an older field; None if its place did not change."""
  if section == "model" and mixer in SYSTEMS and name in _names(SYSTEMS[mixer]):
    return mixer, name
  return MOVED.get((section, name))
