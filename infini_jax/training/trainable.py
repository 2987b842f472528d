"""The trained parameters of a model; frozen ones have no gradient and no moments."""

from typing import Any

import jax

from infini_jax.config import Config
from infini_jax.models.mixers import MIXERS


def is_trained(config: Config, path: Any) -> bool:
  """Whether `config.train.part` selects the parameter at a tree path.

  The memory's own parameters are always trained: gates, and all that an original does not have.
  """
  names = [key.key for key in path]
  own = {name for system in config.model.by_system for name in MIXERS[system].of_model}
  if config.train.part == "all" or "mixer" in names or names[-1] in own:
    return True
  if config.train.part == "attention":
    return "attention" in names
  return config.train.part == "lora" and any(name.startswith("lora_") for name in names)


def split(config: Config, params: Any) -> tuple[Any, Any]:
  """The trained and the frozen parameters: two trees of the same structure, with None elsewhere."""
  pick = lambda trained: jax.tree_util.tree_map_with_path(
    lambda path, x: x if is_trained(config, path) == trained else None, params
  )
  return pick(True), pick(False)


def join(trained: Any, frozen: Any) -> Any:
  """Undoes `split`."""
  one = lambda a, b: b if a is None else a
  return jax.tree.map(one, trained, frozen, is_leaf=lambda x: x is None)
