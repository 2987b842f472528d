"""Infini-attention: local attention inside segments, mixed with a memory of all earlier ones."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops import memory as mem
from infini_jax.ops.attention import (
  PLAIN,
  QKV,
  Scoring,
  Segment,
  append,
  close_full,
  inside,
  segment_attention,
  to_segments,
)
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.memory import MemoryState, Rule, Update, as_rule
from infini_jax.ops.rotary import Frequencies, Rope, rotate
from infini_jax.ops.shards import axis_size, on_shards, token_axes

MEMORY = MemoryState("BKEU", "BKE")  # type: ignore[arg-type]  # the letters of its arrays


class Inputs(NamedTuple):
  """What a layer computes of its tokens, in one argument; `infini_attention` describes each."""

  q_BTHE: Array
  k_BTKE: Array
  v_BTKU: Array
  mask_BT: Array | None
  write_BTK: Array | None
  decay_BTK: Array | None
  own: QKV | None

  def memory(self) -> QKV:
    """The queries, keys and values that the memory takes."""
    return self.own or QKV(self.q_BTHE, self.k_BTKE, self.v_BTKU)


class Form(NamedTuple):
  """How a chunk is computed."""

  run: Callable  # `_scan` or `_parallel`
  rule: Rule
  local: Callable  # attention inside segments


def infini_attention(
  q_BTHE: Float[Array, "B T H E"],
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  beta_H: Float[Array, " H"],
  state: MemoryState | None = None,
  *,
  segment_length: int,
  rule: str | Rule = "linear",
  rope_theta: Rope | None = None,
  scoring: Scoring = PLAIN,
  reset_BS: Bool[Array, "B S"] | None = None,
  mask_BT: Bool[Array, "B T"] | None = None,
  write_BTK: Float[Array, "B T K"] | None = None,
  decay_BTK: Float[Array, "B T K"] | None = None,
  own: QKV | tuple[Array, Array, Array] | None = None,
  cut: Bool[Array, ""] | None = None,
  implementation: str = "auto",
  attention: str = "auto",
) -> tuple[Float[Array, "B T H U"], MemoryState]:
  """Reads T tokens segment by segment (arXiv 2404.07143v2, equations (6) to (10)).

  In every segment of N = `segment_length` tokens each head mixes causal attention inside the
  segment with what the memory of all earlier segments holds,

      A = g A_mem + (1 - g) A_dot,    g = sigmoid(beta)

  and then writes the segment. T need not be a multiple of N: a short last segment is written too.

  Args:
    q_BTHE, k_BTKE, v_BTKU: un-rotated; H is a multiple of K, head `h` belongs to kv head `h // G`.
    beta_H: the gate of each query head, before `rule.gate` is applied.
    state: the memory after earlier calls; None is an empty one.
    segment_length: N, in tokens.
    rule: 'linear' or 'delta', or a `Rule`, which has more choices.
    rope_theta: when given (see `ops.rotary`), rotary positions, restarting in each segment, serve
      the local attention; the memory never sees them.
    scoring: the scale of the local attention's scores, and their softcap.
    reset_BS: True where a segment starts a new document: the memory is emptied before it.
    mask_BT: False for padding, which is neither seen nor written; its outputs are 0.
    write_BTK: how much of a token is written to the memory of each head, 0 to 1; None: all of it.
    decay_BTK: of a segment, the memory leaves `sigmoid` of the mean of its tokens' scores (Gated
      DeltaNet, arXiv 2412.06464, by segments); None: what the rule says.
    own: the memory's own queries, keys and values; None: it shares those of the local attention.
    cut: True reads 0 wherever the memory holds something, `A = (1 - g) A_dot`, and writes as
      otherwise: the ablation of the reads. None: the same as False.
    implementation: 'scan' goes through the segments one by one and recomputes them in the backward
      pass (least memory); 'parallel' is the exact prefix form; 'auto' chooses 'parallel'.
    attention: the kernel of the local attention: see `ops.attention.segment_attention`.

  In a mesh each device computes its own lanes and heads. T may be divided too, each device holding
  whole segments: then only the memory is sent, in the parallel form.

  Returns:
    The output, in the type of `q_BTHE`, and the float32 memory after the last segment.

  Raises:
    ValueError: shapes that do not fit each other, an unknown rule, gate or implementation, or a
      divided T that they cannot work with.
  """
  rule = as_rule(rule)
  _check(q_BTHE, k_BTKE, v_BTKU, beta_H, segment_length, implementation)
  B, T = q_BTHE.shape[:2]
  S = -(-T // segment_length)
  if reset_BS is not None and reset_BS.shape != (B, S):
    raise ValueError(
      f"reset_BS has shape {reset_BS.shape}; {T} tokens in segments of {segment_length} want "
      f"{(B, S)}"
    )
  axes = token_axes(q_BTHE)
  axis = axes["T"] if axis_size(axes["T"]) > 1 else None
  if axis is not None:
    _check_divided(T, segment_length, axis, rule, implementation)
  local = partial(_local, theta=rope_theta, kernel=attention, scoring=scoring)
  run = _scan if implementation == "scan" else partial(_parallel, axis=axis)
  return on_shards(
    partial(_segments, N=segment_length, form=Form(run, rule, local)),
    axes,
    ("BTHU", MEMORY),
    inputs=Inputs(q_BTHE, k_BTKE, v_BTKU, mask_BT, write_BTK, decay_BTK, own and QKV(*own)),
    beta_H=beta_H,
    state=state,
    reset_BS=reset_BS,
    cut=cut,
    rope=_computed(rope_theta),
  )


def _segments(inputs, beta_H, state, reset_BS, cut, rope, *, N, form):
  """One device's share: cut into segments, run, and joined again."""
  B, T = inputs.q_BTHE.shape[:2]
  S = -(-T // N)
  mask_BT = inputs.mask_BT
  if T % N and mask_BT is None:
    mask_BT = jnp.ones((B, T), bool)
  state = mem.empty_memory(inputs.k_BTKE, inputs.v_BTKU) if state is None else state
  reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
  inputs = jax.tree.map(lambda x: to_segments(x, N), inputs._replace(mask_BT=mask_BT))
  local = partial(form.local, rope=rope)
  mix = partial(mem.mix, beta_H=beta_H, rule=form.rule, cut=cut)
  out_BSNHU, state = form.run(inputs, state, reset_BS, form.rule, local, mix)
  out_BTHU = out_BSNHU.reshape(B, S * N, *out_BSNHU.shape[3:])[:, :T]
  if mask_BT is not None:
    out_BTHU = jnp.where(mask_BT[..., None, None], out_BTHU, jnp.zeros((), out_BTHU.dtype))
  return out_BTHU, state


def _local(inputs, rope, *, theta, kernel, scoring):
  """Attention inside each segment, (B,S,N,H,U)."""
  turn = jax.vmap(_rotation(None, theta, rope), 1, 1)
  with jax.named_scope("local"):
    qkv = turn(inputs.q_BTHE), turn(inputs.k_BTKE), inputs.v_BTKU
    return segment_attention(*qkv, inputs.mask_BT, kernel=kernel, scoring=scoring)


def _parallel(inputs, state, reset_BS, rule, local, mix, *, axis):
  """All segments side by side. The arrays of `inputs` have S before N = T."""
  local_BSNHU = local(inputs)
  with jax.named_scope("memory"):
    q_BSNHE, k_BSNKE, v_BSNKU = inputs.memory()
    how = reset_BS, inputs.mask_BT, rule, axis, inputs.write_BTK, inputs.decay_BTK
    before, after = mem.prefix(k_BSNKE, v_BSNKU, state, *how)
    recalled = jax.vmap(mem.read, 1, 1)(q_BSNHE, before)
  return jax.vmap(mix, 1, 1)(local_BSNHU, recalled, before.z_BKE), after


def _scan(inputs, state, reset_BS, rule, local, mix):
  """One segment after the other; the same arrays."""

  @jax.checkpoint
  def segment(memory, xs):
    inputs, reset_B = xs
    memory = where_lane(reset_B, 0, memory)
    alone = jax.tree.map(lambda x: x[:, None], inputs)
    out_BNHU = mix(local(alone)[:, 0], mem.read(inputs.memory().q_BTHE, memory), memory.z_BKE)
    return mem.commit(memory, _summary(inputs, memory, rule), rule), out_BNHU

  by_segment = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, reset_BS))
  state, out_SBNHU = jax.lax.scan(segment, state, by_segment)
  return jnp.moveaxis(out_SBNHU, 0, 1), state


class InfiniStream(NamedTuple):
  """A layer's state while its segment is open: constant in size, however much was read."""

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

  Equal to `infini_attention` over the same tokens. Each lane stands at its own place in its
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
    rope=_computed(rope_theta),
  )


def _extend(inputs, beta_H, stream, cut, rope, *, rule, theta, scoring):
  memory, pending, cache = stream
  turn = _rotation(cache.fill_B, theta, rope)
  q_BTHE, k_BTKE = turn(inputs.q_BTHE), turn(inputs.k_BTKE)
  position_BT, cache = append(cache, k_BTKE, inputs.v_BTKU, inputs.mask_BT)
  local_BTHU = inside(q_BTHE, position_BT, cache, scoring)
  recalled_BTHU = mem.read(inputs.memory().q_BTHE, memory)
  out_BTHU = mem.mix(local_BTHU, recalled_BTHU, memory.z_BKE, beta_H, rule, cut)

  pending = mem.joined(pending, _summary(inputs, memory, rule))
  full_B, cache = close_full(cache, cache.k_BNKE.shape[1])

  def close(memory, pending):
    closed = mem.commit(memory, pending, rule)
    return where_lane(full_B, closed, memory), where_lane(full_B, 0, pending)

  memory, pending = jax.lax.cond(full_B.any(), close, lambda *x: x, memory, pending)
  return out_BTHU, InfiniStream(memory, pending, cache)


def _summary(inputs: Inputs, memory: MemoryState, rule: Rule) -> Update:
  """What these tokens add to the memory."""
  _, k_BTKE, v_BTKU = inputs.memory()
  counts = inputs.write_BTK, inputs.decay_BTK
  return mem.summarize(k_BTKE, v_BTKU, memory, inputs.mask_BT, rule, *counts)


def _computed(rope: Rope | None) -> Frequencies | None:
  """Frequencies that are computed go to every device as an array; theta is a constant."""
  return rope if isinstance(rope, Frequencies) else None


def _rotation(
  first_B: Array | None, theta: Rope | None, rope: Frequencies | None
) -> Callable[[Array], Array]:
  """Rotates tokens (B,T,heads,E). The first of each lane has the position `first_B`, or 0."""
  theta = theta if rope is None else rope
  if theta is None:
    return lambda x: x

  def rotated(x_BTHE):
    position_BT = jnp.arange(x_BTHE.shape[1], dtype=jnp.int32)[None]
    position_BT = position_BT if first_B is None else first_B[:, None] + position_BT
    return rotate(x_BTHE, position_BT, theta)

  return rotated


def _check_divided(T, segment_length, axis, rule, implementation):
  """What a sequence over several devices needs."""
  size = axis_size(axis)
  if T % (size * segment_length):
    raise ValueError(
      f"{T} tokens over {size} devices of the mesh axis {axis!r}: each device holds whole segments "
      f"of {segment_length}, so give a multiple of {size * segment_length}"
    )
  if implementation == "scan":
    raise ValueError("implementation='scan' cannot divide a sequence over devices: use 'parallel'")
  if rule.z_correction:
    raise ValueError("z_correction reads z before every token: it cannot divide a sequence")


def _check(q, k, v, beta, segment_length, implementation):
  if implementation not in ("auto", "scan", "parallel"):
    raise ValueError(f"implementation={implementation!r}: choose 'auto', 'scan' or 'parallel'")
  if segment_length < 1:
    raise ValueError(f"segment_length={segment_length}: must be at least 1")
  if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
    raise ValueError(
      f"q {q.shape}, k {k.shape}, v {v.shape}: want (B,T,H,E), (B,T,K,E), (B,T,K,U) of one B, T, E"
    )
  if q.shape[2] % k.shape[2] or beta.shape != (q.shape[2],):
    raise ValueError(
      f"{q.shape[2]} query heads, {k.shape[2]} key/value heads, beta {beta.shape}: "
      f"want H a multiple of K, and one beta per query head"
    )
