"""Gated delta by segments: a learned decay of the memory, which depends on the segment.

Gated DeltaNet (Yang, Kautz, Hatamizadeh, arXiv 2412.06464) decays its memory at every token. Here
each head decays it once at the border of a segment, by `a = sigmoid(mean(x w + b))` over the hidden
states x of the segment:

    M' = a (M - recalled) + written        z' = a z + keys

All else is Infini-attention: reads, local attention and the gates of the heads.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.infini import Infini
from infini_jax.parallel import product


class GatedDelta(Infini):
  """State: the float32 memory `(M_BKEU, z_BKE)`."""

  scored = True
  tensors: ClassVar[dict[str, tuple[str, bool]]] = Infini.tensors | {
    "w_decay_DK": ("decay.weight", True),
    "b_decay_K": ("decay.bias", False),
  }

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    c = config
    self.reads_hidden = True
    self.w_decay_DK = nnx.Param(jnp.zeros((c.width, c.kv_heads), jnp.float32))
    self.b_decay_K = nnx.Param(jnp.full((c.kv_heads,), c.memory.decay_init, jnp.float32))

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """As Infini-attention, and a score of each token and head."""
    return Infini.memory_flops(c, layer) + 2.0 * c.layers * c.width * c.kv_heads

  def _decay(self, x_BTD):
    score_BTK = product("BTD,DK->BTK", x_BTD.astype(jnp.float32), self.w_decay_DK[...])
    return score_BTK + self.b_decay_K[...][None, None]
