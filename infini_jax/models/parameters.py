"""From a config to the module: `init` makes the parameters, `bind` puts them into it."""

import functools
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.summaries import SummaryTransformer
from infini_jax.models.patterned import PatternTransformer
from infini_jax.models.transformer import Transformer
from infini_jax.parallel import param_shardings


def build(config: ModelConfig, rngs: nnx.Rngs) -> Transformer:
  """The module of this config, its parameters fresh."""
  if config.pattern:
    return PatternTransformer(config, rngs)
  if not config.memory.layered:  # the memory goes through all layers together
    return SummaryTransformer(config, rngs)
  return Transformer(config, rngs)


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Fresh parameters."""
  return nnx.to_pure_dict(nnx.state(build(config, nnx.Rngs(key))))


def param_shapes(config: ModelConfig) -> dict[str, Any]:
  """Shapes and types of the parameters, without making them."""
  return jax.tree.map(lambda x: x, _abstract(config)[1])  # the caller may change its tree


def abstract_params(config: ModelConfig, mesh: Any) -> dict[str, Any]:
  """Shapes, types and storage shardings of the parameters, without making them."""
  tree = param_shapes(config)
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(place, tree, param_shardings(tree, mesh))


def completed(
  config: ModelConfig, params: dict[str, Any], key: jax.Array, mesh: Any
) -> dict[str, Any]:
  """These parameters, and fresh ones where they lack some: gates and adapters of a model that had
  none. Nothing else is made."""
  have, want = flatten_dict(params), flatten_dict(abstract_params(config, mesh))
  lacking = {path: x.sharding for path, x in want.items() if path not in have}

  def make(key):
    fresh = flatten_dict(init(config, key))
    return {path: fresh[path] for path in lacking}

  return unflatten_dict(have | jax.jit(make, out_shardings=lacking)(key))


def bind(config: ModelConfig, params: dict[str, Any]) -> Transformer:
  """The module with these parameters; cheap, and meant to be called while tracing."""
  return nnx.merge(_abstract(config)[0], params)


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """The module without its parameters, and their shapes and types. Each module is traced once."""
  graph, state = nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  return graph, jax.tree.map(shape, nnx.to_pure_dict(state))
