"""Causal attention inside each segment only: Infini-attention without a memory."""

from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.models.mixers.base import Mixer, empty_segment
from infini_jax.ops.attention import (
  append,
  close_full,
  inside,
  open_positions,
  to_segments,
)
from infini_jax.ops.local import LocalAttention
from infini_jax.ops.rotary import rotate
from infini_jax.ops.shards import on_shards, token_axes


class Local(Mixer):
  """There is no state except the keys and values of an open segment."""

  def state(self, lanes: int, layer: int = 0) -> Any:
    """Nothing is carried from segment to segment."""
    return ()

  def read(self, tokens, position_BT, segment, state, chunk):
    """The segment."""

    def on_one(q_BTHE, position_BT, segment, windowed):
      rope, slots = self.rope(windowed), jnp.arange(segment.k_BNKE.shape[1], dtype=jnp.int32)[None]
      rotated = segment._replace(k_BNKE=rotate(segment.k_BNKE, slots, rope))
      return inside(rotate(q_BTHE, position_BT, rope), position_BT, rotated, self.scoring())

    return on_shards(
      on_one,
      token_axes(tokens.q_BTHE, whole=True),
      "BTHE",
      q_BTHE=tokens.q_BTHE,
      position_BT=position_BT,
      segment=segment,
      windowed=chunk.windowed,
    )

  def write(self, segment, state):
    """Nothing."""
    return state

  def __call__(self, tokens, chunk, state):
    """All segments in parallel. `cut` has no effect, because there is no state."""
    out_BTHE = on_shards(
      self._segments,
      token_axes(tokens.q_BTHE),
      "BTHE",
      **tokens.projections(),
      mask_BT=chunk.mask_BT,
      windowed=chunk.windowed,
    )
    return out_BTHE, state

  def _segments(self, q_BTHE, k_BTKE, v_BTKE, mask_BT, windowed):
    B, T = q_BTHE.shape[:2]
    arrays = q_BTHE, k_BTKE, v_BTKE, mask_BT
    arrays = jax.tree.map(lambda x: to_segments(x, self.config.segment_length), arrays)
    out_BSNHU = self.local(windowed)(*arrays)
    return out_BSNHU.reshape(B, -1, *out_BSNHU.shape[3:])[:, :T]

  def local(self, windowed: Any = None) -> LocalAttention:
    """How attention inside segments is computed."""
    return LocalAttention(self.rope(windowed), self.config.run.attention, self.scoring())

  def open(self, state: Any, lanes: int, dtype: Any) -> Any:
    """A segment without tokens. Its keys are rotated when they are added, and not at every read."""
    return empty_segment(self.config, lanes, dtype)

  @staticmethod
  def close(stream: Any) -> Any:
    """Nothing."""
    return ()

  def extend(self, tokens, chunk, stream):
    """A few tokens of the open segment."""
    return on_shards(
      self._extend,
      token_axes(tokens.q_BTHE, whole=True),
      ("BTHE", stream),
      **tokens.projections(),
      stream=stream,
      mask_BT=chunk.mask_BT,
      windowed=chunk.windowed,
    )

  def _extend(self, q_BTHE, k_BTKE, v_BTKE, stream, mask_BT, windowed):
    rope, position_BT = self.rope(windowed), open_positions(stream, q_BTHE.shape[1])
    rotated = lambda x: rotate(x, position_BT, rope)
    _, stream = append(stream, rotated(k_BTKE), v_BTKE, mask_BT)
    out_BTHE = inside(rotated(q_BTHE), position_BT, stream, self.scoring())
    return out_BTHE, close_full(stream, self.config.segment_length)[1]
