"""Rotary settings of a `config.json`: reads all forms that transformers has used, writes one."""

import math
from typing import Any, NamedTuple

from infini_jax.config import InputError

SPELLINGS = ("rope_scaling", "rope_parameters")  # keys of old and new versions of transformers
KINDS = ("full_attention", "sliding_attention")  # kinds of layers; Gemma 3 has settings for each
# All keys that the settings may have. Each type of scaling reads some of them.
KNOWN = {
  *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "finetuned"),
  *("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
  *("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"),
}


class Rope(NamedTuple):
  """How queries and keys are rotated by their positions.

  Attributes:
    theta: the base of the frequencies.
    window_theta: the base of windowed layers, which are never scaled; 0: `theta`.
    scaling: as `FamilyConfig.rope_scaling`.
  """

  theta: float
  window_theta: float
  scaling: tuple[float, ...]


def read_rope(full: dict[str, Any], by_kind: bool, name: str) -> Rope:
  """Reads the rotary settings of a config, under either key.

  Args:
    full: the config with the defaults of its family.
    by_kind: whether full and windowed layers have separate settings (Gemma 3).
    name: the name of the file, for error messages.

  Raises:
    InputError: a type or a setting is not supported, or the settings of the two keys differ.
    KeyError, TypeError, ValueError: a setting is missing or damaged.
  """
  read = _by_kind if by_kind else _of_all
  found = [read(full, key, name) for key in SPELLINGS if full.get(key)]
  if found and found[0] != found[-1]:
    raise InputError(f"{name}: rope_scaling and rope_parameters differ; remove the wrong one")
  return found[0] if found else read(full, SPELLINGS[0], name)


def written_scaling(scaling: tuple[float, ...]) -> dict[str, Any] | None:
  """The value of `rope_scaling` in a config.json; None: no scaling."""
  if not scaling:
    return None
  if len(scaling) == 1:
    return {"rope_type": "linear", "factor": scaling[0]}
  raw = {"factor": scaling[0], "original_max_position_embeddings": int(scaling[3])}
  if len(scaling) == 4:
    llama3 = {"low_freq_factor": scaling[1], "high_freq_factor": scaling[2]}
    return {"rope_type": "llama3", **raw, **llama3}
  turns = {"beta_slow": scaling[1], "beta_fast": scaling[2]}
  return {"rope_type": "yarn", **raw, **turns, "attention_factor": scaling[4]}


def _of_all(full: dict[str, Any], key: str, name: str) -> Rope:
  given = _object(full, key)
  outside = full.get("original_max_position_embeddings")  # it has priority, as in transformers
  original = outside or given.get("original_max_position_embeddings")
  theta, scaling = _settings(given, full["rope_theta"], original, full, f"{name}: {key}")
  return Rope(theta, 0.0, scaling)


def _by_kind(full: dict[str, Any], key: str, name: str) -> Rope:
  given = _object(full, key)
  if key == "rope_scaling":
    if given.get("type", "default") != "default" and "rope_type" not in given:
      raise InputError(
        f"{name}: {key}: versions of transformers differ in how they read type={given['type']!r} "
        f"in this family; write rope_type"
      )
    given = {KINDS[0]: given}
  _check_known(given, set(KINDS), f"{name}: {key}")
  bases = full["rope_theta"], full["rope_local_base_freq"]
  (theta, scaling), (window_theta, of_windows) = (
    _settings(part, base, part.get("original_max_position_embeddings"), full, f"{name}: {key}")
    for part, base in zip((_object(given, kind) for kind in KINDS), bases, strict=True)
  )
  if of_windows:
    raise InputError(f"{name}: {key} scale windowed layers, which is not supported")
  return Rope(theta, window_theta, scaling)


def _settings(
  given: dict[str, Any], theta: Any, original: Any, full: dict[str, Any], where: str
) -> tuple[float, tuple[float, ...]]:
  _check_known(given, KNOWN, where)
  if given.get("partial_rotary_factor") not in (None, 1):
    raise InputError(f"{where}: partial_rotary_factor is not supported; choose another model")
  given = {"rope_theta": theta} | given
  positions = full["max_position_embeddings"]
  given["original_max_position_embeddings"] = positions if original is None else original
  if given.get("rope_type", given.get("type")) == "yarn" and given.get("factor", 0) is None:
    given["factor"] = positions / _number(given, "original_max_position_embeddings")
  return _number(given, "rope_theta"), _scaling(given, where)


def _scaling(given: dict[str, Any], where: str) -> tuple[float, ...]:
  kind = given.get("rope_type", given.get("type", "default"))
  if kind == "default":
    if given.get("factor") not in (None, 1):
      raise InputError(f"{where}: factor={given['factor']!r} without a type; add its rope_type")
    return ()
  if kind == "linear":
    return (_number(given, "factor"),)
  if kind == "llama3":
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return tuple(_number(given, key) for key in keys)
  if kind == "yarn" and given.get("truncate", True):
    return _yarn(given)
  raise InputError(
    f"{where}: rope scaling of type {kind!r} is not supported; default, linear, llama3 and yarn "
    f"(truncated) are"
  )


def _yarn(given: dict[str, Any]) -> tuple[float, ...]:
  """The scaling of YaRN. Its magnitude is a setting, or follows from the factor."""
  factor = _number(given, "factor")
  if _number(given, "rope_theta") <= 1:
    raise ValueError(f"rope_theta={given['rope_theta']!r}: must be above 1 for yarn")
  grown = lambda share: 1.0 + 0.1 * share * math.log(factor) if factor > 1 else 1.0
  if given.get("attention_factor") is not None:
    magnitude = _number(given, "attention_factor")
  elif given.get("mscale") and given.get("mscale_all_dim"):
    magnitude = grown(_number(given, "mscale")) / grown(_number(given, "mscale_all_dim"))
  else:
    magnitude = grown(1.0)
  turns = (_number(given, key) if given.get(key) else usual for key, usual in YARN_TURNS.items())
  return factor, *turns, _number(given, "original_max_position_embeddings"), magnitude


YARN_TURNS = {"beta_slow": 1.0, "beta_fast": 32.0}


def _number(given: dict[str, Any], key: str) -> float:
  if type(given[key]) not in (int, float) or not 0 < given[key] < math.inf:
    raise ValueError(f"{key}={given[key]!r}: must be a number above 0")
  return float(given[key])


def _object(full: dict[str, Any], key: str) -> dict[str, Any]:
  if not isinstance(given := full.get(key) or {}, dict):
    raise ValueError(f"{key}={given!r}: must be an object")
  return given


def _check_known(given: dict[str, Any], known: set[str], where: str) -> None:
  if strange := sorted(given.keys() - known):
    supported = ", ".join(sorted(known))
    raise InputError(
      f"{where}: {strange[0]}={given[strange[0]]!r} is not supported; {supported} are"
    )
