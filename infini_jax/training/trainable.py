"""The part of a model that is trained; what is frozen has no gradient and no moments."""

from typing import Any

import jax

from infini_jax.config import Config


def is_trained(config: Config, path: Any) -> bool:
  """Whether `config.train.part` holds the parameter at a tree path.

  What is the memory's own is in every part: gates, and what no original has.
  """
  names = [key.key for key in path]
  if config.train.part == "all" or "mixer" in names or names[-1] == "summary_PD":
    return True
  if config.train.part == "attention":
    return "attention" in names
  return config.train.part == "lora" and any(name.startswith("lora_") for name in names)


def split(config: Config, params: Any) -> tuple[Any, Any]:
  """The trained parameters and the frozen: the same tree twice, each with None for the rest."""
  pick = lambda trained: jax.tree_util.tree_map_with_path(
    lambda path, x: x if is_trained(config, path) == trained else None, params
  )
  return pick(True), pick(False)


def join(trained: Any, frozen: Any) -> Any:
  """Undoes `split`."""
  one = lambda a, b: b if a is None else a
  return jax.tree.map(one, trained, frozen, is_leaf=lambda x: x is None)
