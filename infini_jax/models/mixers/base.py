"""What every memory system offers: the one interface between a layer and what it remembers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.ops.attention import Scoring
from infini_jax.ops.rotary import Frequencies, Rope, frequencies


class Mixer(nnx.Module):
  """How a layer's tokens see what came before, and what is carried on.

  Queries `(B,T,H,E)`, keys and values `(B,T,K,E)` come un-rotated. However the tokens are cut into
  calls, the outputs are the same. Resetting every segment is knocking the memory out.

  Where every so-many-th layer is global (`config.global_every`) and the others have the window,
  calls have `windowed` too, a bool scalar; mixers that cannot do it are refused by the config.
  """

  # Whether `__call__` and `extend` want `x_BTD`, of which q, k, v are made, and `project`, which
  # makes keys and values of more such (`frozen`: the projections are not trained by it).
  reads_hidden = False

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config

  def groups(self) -> tuple[tuple[int, int], ...]:
    """Runs of layers, (first, after the last), whose states are alike: each is one scan."""
    return ((0, self.config.layers),)

  def state(self, lanes: int, layer: int = 0) -> Any:
    """The state of a layer (from 0) before anything was read; no leaves: nothing is carried."""
    raise NotImplementedError

  def __call__(
    self,
    q_BTHE: jax.Array,
    k_BTKE: jax.Array,
    v_BTKE: jax.Array,
    state: Any,
    *,
    reset_BS: jax.Array | None = None,
    mask_BT: jax.Array | None = None,
    cut: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """A chunk of whole segments: the output (B,T,H,E) and the state after it.

    `reset_BS` is True where a segment starts a document, `mask_BT` False on padding. `cut` is a
    bool scalar: True reads nothing of the state: the knock-out of this layer's reads.
    """
    raise NotImplementedError

  def open(self, state: Any, lanes: int, dtype: Any) -> Any:
    """From the state after whole segments to the stream of a segment that is open."""
    raise NotImplementedError

  def close(self, stream: Any) -> Any:
    """The other way, where no lane has a token in its open segment; layers may be in front."""
    raise NotImplementedError

  def extend(
    self, q_BTHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, stream: Any, mask_BT: jax.Array
  ) -> tuple[jax.Array, Any]:
    """A few tokens of the open segment: the output and the stream after them.

    The tokens of `mask_BT` come first in each row, and never run past the segment's end.
    """
    raise NotImplementedError

  def rope(self, windowed: jax.Array | None = None) -> Rope:
    """How this layer's queries and keys are turned: `ops.rotary.rotate`."""
    c = self.config
    if windowed is None and c.window_theta:
      return c.window_theta
    if not (c.window_theta or c.rope_scaling or c.global_nope):
      return c.rope_theta
    scaled = frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
    if windowed is None or not (c.window_theta or c.global_nope):
      return scaled
    near = frequencies(c.head_dim, c.window_theta) if c.window_theta else scaled
    far = Frequencies(jnp.zeros_like(scaled.frequency_E)) if c.global_nope else scaled
    return jax.tree.map(partial(jnp.where, windowed), near, far)

  def scoring(self) -> Scoring:
    """The scale and the softcap of this layer's scores."""
    return Scoring(self.config.query_scale, self.config.attention_softcap)

  @staticmethod
  def auxiliary(state: Any) -> jax.Array | float:
    """A loss of the mixer's own, from the state after a chunk; mean over layers and lanes."""
    return 0.0

  @staticmethod
  def reserve(state: Any, tokens: int) -> Any:
    """Room for `tokens` more, where a state grows. `state` has the layers in front."""
    return state
