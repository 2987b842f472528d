"""Low-rank adapters (Hu et al., arXiv 2106.09685): learned parameters next to frozen weights.

With one, a weight w acts as w + (alpha / R) down up, R = adapters.rank. `up` begins at 0: at first
nothing is changed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.parallel import product


class Adapter(nnx.Module):
  """The term that is added to the product with one weight.

  Args:
    config: of the model.
    rngs: for `down`.
    ins: letters and sizes of what the weight sums over.
    outs: letters and sizes of what it makes.
    rank: R; by default `config.adapters.rank`.
  """

  def __init__(
    self,
    config: ModelConfig,
    rngs: nnx.Rngs,
    ins: dict[str, int],
    outs: dict[str, int],
    rank: int = 0,
  ):
    self.ins, self.outs, R = "".join(ins), "".join(outs), rank or config.adapters.rank
    self.scale = config.adapters.alpha / R
    down = jax.random.normal(rngs.params(), (*ins.values(), R)) * math.prod(ins.values()) ** -0.5
    setattr(self, f"down_{self.ins}R", nnx.Param(down.astype(config.run.param_dtype)))
    up = jnp.zeros((R, *outs.values()), config.run.param_dtype)
    setattr(self, f"up_R{self.outs}", nnx.Param(up))

  def __call__(self, x: jax.Array, keep: Callable[[Any], Any] = lambda weight: weight) -> jax.Array:
    """Through both matrices; `keep` is applied to each of them first."""
    down, up = (getattr(self, f"down_{self.ins}R"), getattr(self, f"up_R{self.outs}"))
    low_BTR = product(f"BT{self.ins},{self.ins}R->BTR", x, keep(down[...]))
    return product(f"BTR,R{self.outs}->BT{self.outs}", low_BTR * self.scale, keep(up[...]))


def merged(config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
  """The same model without adapters: what they add is added to their weights.

  Layers are stacked in front, as in a model, or it is one of them.
  """
  if not config.adapters.rank:
    return config, params
  attention = params["blocks"]["attention"]
  adapters = {name: value for name, value in attention.items() if name.startswith("lora_")}
  rest = {name: value for name, value in attention.items() if name not in adapters}
  scale = config.adapters.alpha / config.adapters.rank
  none = dataclasses.replace(config.adapters, rank=0)
  for name, adapter in adapters.items():
    (down,) = (key for key in adapter if key.startswith("down_"))
    (up,) = (key for key in adapter if key.startswith("up_"))
    ins, outs = down.removeprefix("down_")[:-1], up.removeprefix("up_")[1:]
    weight = f"w_{name.removeprefix('lora_')}_{ins}{outs}"
    factors = [adapter[key].astype(jnp.float32) for key in (down, up)]
    added = jnp.einsum(f"...{ins}R,...R{outs}->...{ins}{outs}", *factors, precision="highest")
    whole = rest[weight].astype(jnp.float32) + scale * added
    rest[weight] = whole.astype(rest[weight].dtype)
  blocks = {**params["blocks"], "attention": rest}
  return dataclasses.replace(config, adapters=none), {**params, "blocks": blocks}
