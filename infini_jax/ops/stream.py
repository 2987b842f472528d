"""Infini-attention token by token: the open segment, and its pending update of the memory."""

from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from infini_jax.ops import memory as mem
from infini_jax.ops.attention import PLAIN, QKV, Scoring, Segment, append, close_full, inside
from infini_jax.ops.inputs import Inputs, summary
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.memory import MemoryState, Update
from infini_jax.ops.rotary import Rope, computed, rotation
from infini_jax.ops.rule import Rule, as_rule
from infini_jax.ops.shards import on_shards, token_axes


class InfiniStream(NamedTuple):
  """The state of a layer with an open segment; its size is constant."""

  memory: MemoryState  # of the closed segments; this alone is read
  pending: Update  # what the open segment will add when it closes
  cache: Segment  # the open segment; its keys are rotated


def open_stream(
  state: MemoryState, cache: Segment, rule: str | Rule, scored: bool = False
) -> InfiniStream:
  """Begins a segment after whole ones: nothing pending, `cache` empty.

  Args:
    state: the memory.
    cache: a segment without tokens.
    rule: how it is written.
    scored: tokens will come with `decay_BTK`.
  """
  return InfiniStream(state, mem.no_update(state, as_rule(rule), scored), cache)


def extend_stream(
  q_BTHE: Float[Array, "B T H E"],
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  beta_H: Float[Array, " H"],
  stream: InfiniStream,
  mask_BT: Bool[Array, "B T"],
  *,
  rule: str | Rule,
  rope_theta: Rope | None = None,
  write_BTK: Float[Array, "B T K"] | None = None,
  decay_BTK: Float[Array, "B T K"] | None = None,
  own: QKV | tuple[Array, Array, Array] | None = None,
  scoring: Scoring = PLAIN,
  cut: Bool[Array, ""] | None = None,
) -> tuple[Float[Array, "B T H U"], InfiniStream]:
  """T more tokens of each lane's open segment; closes it when it is full.

  Equal to `infini_attention` over the same tokens. Each lane has its own position in its
  segment; its tokens come first in its row of `mask_BT` and never run past the segment's end.
  """
  return on_shards(
    partial(_extend, rule=as_rule(rule), theta=rope_theta, scoring=scoring),
    token_axes(q_BTHE, whole=True),
    ("BTHU", stream),
    inputs=Inputs(q_BTHE, k_BTKE, v_BTKU, mask_BT, write_BTK, decay_BTK, own and QKV(*own)),
    beta_H=beta_H,
    stream=stream,
    cut=cut,
    rope=computed(rope_theta),
  )


def _extend(inputs, beta_H, stream, cut, rope, *, rule, theta, scoring):
  memory, pending, cache = stream
  rotate = rotation(cache.fill_B, theta if rope is None else rope)
  q_BTHE, k_BTKE = rotate(inputs.q_BTHE), rotate(inputs.k_BTKE)
  position_BT, cache = append(cache, k_BTKE, inputs.v_BTKU, inputs.mask_BT)
  local_BTHU = inside(q_BTHE, position_BT, cache, scoring)
  recalled_BTHU = mem.read(inputs.memory().q_BTHE, memory)
  out_BTHU = mem.mix(local_BTHU, recalled_BTHU, memory.z_BKE, beta_H, rule, cut)

  pending = mem.joined(pending, summary(inputs, memory, rule))
  full_B, cache = close_full(cache, cache.k_BNKE.shape[1])

  def close(memory, pending):
    closed = mem.commit(memory, pending, rule)
    return where_lane(full_B, closed, memory), where_lane(full_B, 0, pending)

  memory, pending = jax.lax.cond(full_B.any(), close, lambda *x: x, memory, pending)
  return out_BTHU, InfiniStream(memory, pending, cache)
