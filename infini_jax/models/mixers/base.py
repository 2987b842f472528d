"""What every memory system offers: the one interface between a layer and what it remembers."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.ops.attention import Scoring
from infini_jax.ops.rotary import Frequencies, Rope, frequencies


class Work(NamedTuple):
  """Of a layer: the tokens that go through it at a time, the keys that each sees, more bytes."""

  rows: float
  keys: float
  bytes: float = 0.0


def pair_size(c: ModelConfig) -> int:
  """Numbers of a token's keys and values."""
  return 2 * c.kv_heads * c.head_dim


def read_flops(c: ModelConfig) -> int:
  """Operations of one query, in all heads, with one key and value."""
  return 4 * c.heads * c.head_dim


class Mixer(nnx.Module):
  """How a layer's tokens see what came before, and what is carried on.

  Queries `(B,T,H,E)`, keys and values `(B,T,K,E)` come un-rotated. However the tokens are cut into
  calls, the outputs are the same. Resetting every segment is knocking the memory out.

  Where every so-many-th layer is global (`family.global_every`) and the others have the window,
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
    if windowed is None and c.family.window_theta:
      return c.family.window_theta
    if not (c.family.window_theta or c.family.rope_scaling or c.family.global_nope):
      return c.family.rope_theta
    scaled = frequencies(c.head_dim, c.family.rope_theta, c.family.rope_scaling)
    if windowed is None or not (c.family.window_theta or c.family.global_nope):
      return scaled
    near = frequencies(c.head_dim, c.family.window_theta) if c.family.window_theta else scaled
    far = Frequencies(jnp.zeros_like(scaled.frequency_E)) if c.family.global_nope else scaled
    return jax.tree.map(partial(jnp.where, windowed), near, far)

  def scoring(self) -> Scoring:
    """The scale and the softcap of this layer's scores."""
    return Scoring(self.config.family.query_scale, self.config.family.attention_softcap)

  @staticmethod
  def memory_flops(c: ModelConfig, layer: float) -> float:
    """Floating-point operations of one token forward, all layers, beside those of its segment.

    Args:
      c: the model.
      layer: operations of one token through the weights of a layer.
    """
    return 0.0

  @staticmethod
  def table_1(c: ModelConfig) -> tuple[str, int]:
    """The numbers that one lane carries: Table 1's formula (arXiv 2404.07143), and its value.

    K stands for the paper's H: the heads that have keys and values.
    """
    return "0", 0

  @staticmethod
  def work(c: ModelConfig, s: Any) -> Work:
    """What the memory makes of a layer's work on one device.

    Args:
      c: the model.
      s: a device's share: `plan.shares.Shares`.
    """
    return Work(s.tokens, c.segment_length)

  @staticmethod
  def auxiliary(state: Any) -> jax.Array | float:
    """A loss of the mixer's own, from the state after a chunk; mean over layers and lanes."""
    return 0.0

  @staticmethod
  def reserve(state: Any, tokens: int) -> Any:
    """Room for `tokens` more, where a state grows. `state` has the layers in front."""
    return state
