"""The new names of fields of older configs, so that older run.json files, exports and states load.

Until November 2026 the section `model` held the fields of all memory systems, of the family, of
adapters and of the machine, `task` held those of needles, and `train` those of logging.
"""

from typing import Any

from infini_jax.config.systems import SYSTEMS

# The lists are of older configs: no field of a later section is added to them.
INFINI = (
  *("rule", "gate", "gate_init", "write_gate", "scale_first_segment", "normalize_keys"),
  *("z_correction", "decay", "readout_norm"),
)
# The fields of `model` that are now in the section of a memory system. One that several systems
# have goes to the chosen system, or to the last one here.
OF_SYSTEM = {
  "compressive": ("compression", "compression_rate", "compressed_memory"),
  "memorizing": ("knn_layers", "knn_memory", "knn_top", "gate", "gate_init"),
  "rmt": ("summary_tokens",),
  "autocompressor": ("summary_tokens", "summary_steps", "segment_jitter"),
  "gated_delta": INFINI,  # it is newer, but an older config file may choose it now
  "infini": INFINI,
}
FAMILY = (
  *("rope_theta", "rope_scaling", "norm_eps", "norm_plus_one", "qk_norm", "attention_bias"),
  *("post_norms", "embed_scale", "query_scale", "attention_softcap", "logit_softcap", "window"),
  *("global_every", "global_nope", "window_theta"),
)
RUN = ("remat", "implementation", "attention", "compute_dtype", "param_dtype")

# (section, field) to its new section and field.
MOVED: dict[tuple[str, str], tuple[str, str]] = {
  **{("model", name): (system, name) for system, names in OF_SYSTEM.items() for name in names},
  **{("model", name): ("family", name) for name in FAMILY},
  **{("model", name): ("run", name) for name in RUN},
  **{("model", f"lora_{name}"): ("adapters", name) for name in ("rank", "alpha")},
  **{("task", name): ("needle", name) for name in ("family", "needles", "hops", "facts", "filler")},
  **{
    ("train", name): ("log", name)
    for name in ("tensorboard", "wandb", "profile_start", "profile_steps")
  },
  ("train", "compilation_cache"): ("run", "compilation_cache"),
}


def migrated(sections: dict[str, Any]) -> dict[str, Any]:
  """The sections of a config with all fields under their new names.

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
      moved = moved_to(section, name, mixer)
      if moved is not None and not (moved[0] in SYSTEMS and moved[0] != mixer):
        made.setdefault(moved[0], {})[moved[1]] = value
      elif moved is None:
        made.setdefault(section, {})[name] = value
  return made


def moved_to(section: str, name: str, mixer: str = "infini") -> tuple[str, str] | None:
  """The new section and name of an older field; None if they did not change."""
  if section == "model" and name in OF_SYSTEM.get(mixer, ()):
    return mixer, name
  return MOVED.get((section, name))
