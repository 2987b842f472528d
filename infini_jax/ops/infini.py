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
  Scoring,
  SegmentCache,
  close_full,
  extend_segment,
  open_positions,
  segment_attention,
  split_heads,
  to_segments,
)
from infini_jax.ops.memory import MemoryState, Rule, Update, as_rule
from infini_jax.ops.rotary import Frequencies, Rope, rotate
from infini_jax.ops.shards import P, axis_size, on_shards, spec_of

GATES: dict[str, Callable[[Array], Array]] = {
  "sigmoid": jax.nn.sigmoid,
  "hard_sigmoid": jax.nn.hard_sigmoid,  # relu6(x + 3) / 6
}
Own = tuple[Array, Array, Array]  # queries, keys and values of the memory alone
READOUT_EPSILON = 1e-6  # added to the mean square of a read-out


def gate_values(beta: Float[Array, "..."], kind: str = "sigmoid") -> Float[Array, "..."]:
  """The share of the memory that `beta` stands for, 0 to 1, in float32."""
  return GATES[kind](beta.astype(jnp.float32))


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
  own: Own | None = None,
  scale_first_segment: bool = False,
  gate: str = "sigmoid",
  readout_norm: bool = False,
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
    beta_H: the gate of each query head, before `gate` is applied.
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
    scale_first_segment: True scales the local output by `1 - g` even while the memory is empty, as
      the formula says literally; otherwise a head with an empty memory is all local.
    gate: 'sigmoid', or 'hard_sigmoid', `relu6(beta + 3) / 6`, which reaches 0 and 1.
    readout_norm: divides each head's A_mem by its root mean square; where empty it stays 0.
    cut: True reads 0 wherever the memory holds something, `A = (1 - g) A_dot`, and writes as ever:
      the knock-out of the reads. None: the same as False.
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
  _check(q_BTHE, k_BTKE, v_BTKU, beta_H, segment_length, gate, implementation)
  B, T = q_BTHE.shape[:2]
  S = -(-T // segment_length)
  if reset_BS is not None and reset_BS.shape != (B, S):
    raise ValueError(
      f"reset_BS has shape {reset_BS.shape}; {T} tokens in segments of {segment_length} want "
      f"{(B, S)}"
    )
  lanes, over, heads, _ = spec_of(q_BTHE)
  axis = over if axis_size(over) > 1 else None
  if axis is not None:
    _check_divided(T, segment_length, axis, rule, implementation)
  mix = partial(_mix, gate=gate, readout_norm=readout_norm, literal=scale_first_segment)
  run = partial(
    _segments,
    segment_length=segment_length,
    run=_scan if implementation == "scan" else partial(_parallel, axis=axis),
    rule=rule,
    theta=rope_theta,
    mix=mix,
    kernel=attention,
    scoring=scoring,
  )
  token, memory = P(lanes, over, heads), P(lanes, heads)
  return on_shards(
    run,
    *(q_BTHE, k_BTKE, v_BTKU, beta_H, state, reset_BS, mask_BT, write_BTK, decay_BTK, own, cut),
    _computed(rope_theta),
    specs=(
      *(
        token,
        token,
        token,
        P(heads),
        memory,
        P(lanes, over),
        P(lanes, over),
        token,
        token,
        token,
        P(),
      ),
      P(),
    ),
    out_specs=(token, memory),
  )


def _segments(
  q_BTHE, k_BTKE, v_BTKU, beta_H, state, reset_BS, mask_BT, write_BTK, decay_BTK, own,
  cut, computed, *, segment_length, run, rule, theta, mix, kernel, scoring,
):  # fmt: skip
  """One device's share: cut into segments, run, and joined again."""
  B, T = q_BTHE.shape[:2]
  N = segment_length
  S = -(-T // N)
  if T % N and mask_BT is None:
    mask_BT = jnp.ones((B, T), bool)

  q, k, v = (to_segments(x, N) for x in (q_BTHE, k_BTKE, v_BTKU))
  own = (q, k, v) if own is None else tuple(to_segments(x, N) for x in own)
  some = (None if x is None else to_segments(x, N) for x in (mask_BT, write_BTK, decay_BTK))
  mask, write, decay = some
  state = mem.empty_memory(k_BTKE, v_BTKU) if state is None else state
  reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
  mix = partial(mix, beta_H=beta_H, cut=cut)
  theta = theta if computed is None else computed
  local = partial(_local, theta=theta, kernel=kernel, scoring=scoring)
  out_BSNHU, state = run(q, k, v, own, state, reset_BS, mask, (write, decay), rule, local, mix)
  out_BTHU = out_BSNHU.reshape(B, S * N, *out_BSNHU.shape[3:])[:, :T]
  if mask_BT is not None:
    out_BTHU = jnp.where(mask_BT[..., None, None], out_BTHU, jnp.zeros((), out_BTHU.dtype))
  return out_BTHU, state


def _local(q_BSNHE, k_BSNKE, v_BSNKU, mask_BSN, *, theta, kernel, scoring):
  turn = jax.vmap(lambda x: _rotate_segment(x, theta), 1, 1)
  with jax.named_scope("local"):
    qkv = turn(q_BSNHE), turn(k_BSNKE), v_BSNKU
    return segment_attention(*qkv, mask_BSN, kernel=kernel, scoring=scoring)


def _parallel(
  q_BSNHE, k_BSNKE, v_BSNKU, own, state, reset_BS, mask_BSN, counts, rule, local, mix, *, axis
):
  local_BSNHU = local(q_BSNHE, k_BSNKE, v_BSNKU, mask_BSN)
  with jax.named_scope("memory"):
    written = (reset_BS, mask_BSN, rule, axis, *counts)
    own_q, own_k, own_v = own
    before, after = mem.prefix(own_k, own_v, state, *written)
    recalled = jax.vmap(mem.read, 1, 1)(own_q, before)
  return jax.vmap(mix, 1, 1)(local_BSNHU, recalled, before.z_BKE), after


def _scan(q_BSNHE, k_BSNKE, v_BSNKU, own, state, reset_BS, mask_BSN, counts, rule, local, mix):
  @jax.checkpoint
  def segment(memory, xs):
    q, k, v, (own_q, own_k, own_v), reset_B, mask, counts = xs
    memory = mem.where_lane(reset_B, 0, memory)
    alone = jax.tree.map(lambda x: x[:, None], (q, k, v, mask))
    out = mix(local(*alone)[:, 0], mem.read(own_q, memory), memory.z_BKE)
    return mem.commit(memory, mem.summarize(own_k, own_v, memory, mask, rule, *counts), rule), out

  xs = (q_BSNHE, k_BSNKE, v_BSNKU, own, reset_BS, mask_BSN, counts)
  state, out_SBNHU = jax.lax.scan(segment, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs))
  return jnp.moveaxis(out_SBNHU, 0, 1), state


class InfiniStream(NamedTuple):
  """A layer's state while its segment is open: constant in size, however much was read."""

  memory: MemoryState  # of the closed segments; this alone is read
  pending: Update  # what the open segment will add when it closes
  cache: SegmentCache  # the open segment's rotated keys and values


def open_stream(
  state: MemoryState, cache: SegmentCache, rule: str | Rule, decays: bool = False
) -> InfiniStream:
  """Begins a segment after whole ones: nothing pending, `cache` empty; `decays`: by a score."""
  rule = as_rule(rule)
  no_M, no_z = jax.tree.map(jnp.zeros_like, state)
  recalled, new = no_M if rule.name == "delta" else None, no_z if rule.z_correction else None
  counted = (no_z[..., 0],) * 2 if decays else (None, None)
  return InfiniStream(state, Update(no_M, recalled, no_z, new, *counted), cache)


def extend_stream(
  q_BTHE: Float[Array, "B T H E"],
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  beta_H: Float[Array, " H"],
  stream: InfiniStream,
  mask_BT: Bool[Array, "B T"],
  *,
  rule: str | Rule,
  rope_theta: Rope | None,
  write_BTK: Float[Array, "B T K"] | None = None,
  decay_BTK: Float[Array, "B T K"] | None = None,
  own: Own | None = None,
  scoring: Scoring = PLAIN,
  scale_first_segment: bool = False,
  gate: str = "sigmoid",
  readout_norm: bool = False,
  cut: Bool[Array, ""] | None = None,
) -> tuple[Float[Array, "B T H U"], InfiniStream]:
  """T more tokens of each lane's open segment; closes it when it is full.

  Equal to `infini_attention` over the same tokens. Each lane stands at its own place in its
  segment; its tokens come first in its row of `mask_BT` and never run past the segment's end.
  """
  lanes, _, heads, _ = spec_of(q_BTHE)
  mix = partial(_mix, gate=gate, readout_norm=readout_norm, literal=scale_first_segment)
  token, memory = P(lanes, None, heads), P(lanes, heads)
  open_segment = InfiniStream(memory, memory, SegmentCache(token, token, P(lanes)))
  return on_shards(
    partial(_extend, rule=as_rule(rule), theta=rope_theta, mix=mix, scoring=scoring),
    *(
      q_BTHE,
      k_BTKE,
      v_BTKU,
      beta_H,
      stream,
      mask_BT,
      write_BTK,
      decay_BTK,
      own,
      cut,
      _computed(rope_theta),
    ),
    specs=(token, token, token, P(heads), open_segment, P(lanes), *(token,) * 3, P(), P()),
    out_specs=(token, open_segment),
  )


def _extend(
  q_BTHE, k_BTKE, v_BTKU, beta_H, stream, mask_BT, write_BTK, decay_BTK, own, cut, computed,
  *, rule, theta, mix, scoring,
):  # fmt: skip
  N = stream.cache.k_BNKE.shape[1]
  theta = theta if computed is None else computed
  position_BT = open_positions(stream.cache, q_BTHE.shape[1])
  turn = (lambda x: x) if theta is None else (lambda x: rotate(x, position_BT, theta))
  qkv = turn(q_BTHE), turn(k_BTKE), v_BTKU
  local, cache = extend_segment(*qkv, stream.cache, mask_BT, scoring)
  memory = stream.memory
  own_q, own_k, own_v = (q_BTHE, k_BTKE, v_BTKU) if own is None else own
  out = mix(local, mem.read(own_q, memory), memory.z_BKE, beta_H=beta_H, cut=cut)

  more = mem.summarize(own_k, own_v, memory, mask_BT, rule, write_BTK, decay_BTK)
  pending = jax.tree.map(jnp.add, stream.pending, more)
  full_B, cache = close_full(cache, N)
  memory = mem.where_lane(full_B, mem.commit(memory, pending, rule), memory)
  pending = mem.where_lane(full_B, 0, pending)
  return out, InfiniStream(memory, pending, cache)


def _computed(rope: Rope | None) -> Frequencies | None:
  """Frequencies that are computed are handed to every device; theta is known to all."""
  return rope if isinstance(rope, Frequencies) else None


def _rotate_segment(x_BNHE: Array, theta: Rope | None) -> Array:
  if theta is None:
    return x_BNHE
  return rotate(x_BNHE, jnp.arange(x_BNHE.shape[1], dtype=jnp.int32)[None], theta)


def _mix(local_BNHU, recalled_BNHU, z_BKE, *, beta_H, gate, readout_norm, cut, literal):
  """The gate, equation (10), in float32."""
  gate_H = gate_values(beta_H, gate)[None, None, :, None]
  local, recalled = local_BNHU.astype(jnp.float32), recalled_BNHU
  if readout_norm:
    square = jnp.mean(recalled * recalled, -1, keepdims=True)
    recalled = recalled * jax.lax.rsqrt(square + READOUT_EPSILON)
  if cut is not None:
    recalled = jnp.where(cut, 0.0, recalled)
  mixed = gate_H * recalled + (1 - gate_H) * local
  if not literal:
    B, N, H, U = local.shape
    K = z_BKE.shape[1]
    by_kv_head = lambda x: split_heads(x, K)
    empty_BK = mem.is_empty(z_BKE)
    mixed = jnp.where(empty_BK[:, None, :, None, None], by_kv_head(local), by_kv_head(mixed))
    mixed = mixed.reshape(B, N, H, U)
  return mixed.astype(local_BNHU.dtype)


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


def _check(q, k, v, beta, segment_length, gate, implementation):
  if gate not in GATES:
    raise ValueError(f"gate={gate!r}: choose 'sigmoid' or 'hard_sigmoid'")
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
