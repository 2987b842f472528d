"""Infini-attention: local attention inside segments, mixed with a memory of all earlier ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops import memory as mem
from infini_jax.ops.attention import (
  SegmentCache,
  extend_segment,
  segment_attention,
  split_heads,
)
from infini_jax.ops.memory import MemoryState, Update
from infini_jax.ops.rotary import rotate


def infini_attention(
  q_BTHE: Float[Array, "B T H E"],
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  beta_H: Float[Array, " H"],
  state: MemoryState | None = None,
  *,
  segment_length: int,
  rule: str = "linear",
  rope_theta: float | None = None,
  reset_BS: Bool[Array, "B S"] | None = None,
  mask_BT: Bool[Array, "B T"] | None = None,
  scale_first_segment: bool = False,
  implementation: str = "auto",
) -> tuple[Float[Array, "B T H U"], MemoryState]:
  """Reads T tokens segment by segment (arXiv 2404.07143v2, equations (6) to (10)).

  In every segment of N = `segment_length` tokens each head mixes causal attention inside the
  segment with what the memory of all earlier segments holds,

      A = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot

  and then writes the segment. T need not be a multiple of N: a short last segment is written too.

  Args:
    q_BTHE, k_BTKE, v_BTKU: un-rotated; H is a multiple of K, head `h` belongs to kv head `h // G`.
    beta_H: the gate of each query head, before the sigmoid.
    state: the memory after earlier calls; None is an empty one.
    segment_length: N, in tokens.
    rule: 'linear' or 'delta'.
    rope_theta: when given, rotary positions, restarting in each segment, serve the local attention;
      the memory never sees them.
    reset_BS: True where a segment starts a new document: the memory is emptied before it.
    mask_BT: False for padding, which is neither seen nor written; its outputs are 0.
    scale_first_segment: True scales the local output by `1 - sigmoid(beta)` even while the memory
      is empty, as the formula says literally; otherwise a head with an empty memory is all local.
    implementation: 'scan' goes through the segments one by one and recomputes them in the backward
      pass (least memory); 'parallel' is the exact prefix form; 'auto' chooses 'parallel'.

  Returns:
    The output, in the type of `q_BTHE`, and the float32 memory after the last segment.

  Raises:
    ValueError: shapes that do not fit each other, or an unknown rule or implementation.
  """
  _check(q_BTHE, k_BTKE, v_BTKU, beta_H, segment_length, rule, implementation)
  B, T = q_BTHE.shape[:2]
  N = segment_length
  S = -(-T // N)
  if T % N and mask_BT is None:
    mask_BT = jnp.ones((B, T), bool)

  def split(x):
    if x is None:
      return None
    x = jnp.pad(x, ((0, 0), (0, S * N - T)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, S, N, *x.shape[2:])

  q, k, v, mask = split(q_BTHE), split(k_BTKE), split(v_BTKU), split(mask_BT)
  state = mem.empty_memory(k_BTKE, v_BTKU) if state is None else state
  if reset_BS is None:
    reset_BS = jnp.zeros((B, S), bool)
  elif reset_BS.shape != (B, S):
    raise ValueError(
      f"reset_BS has shape {reset_BS.shape}; {T} tokens in segments of {N} want {(B, S)}"
    )

  run = _scan if implementation == "scan" else _parallel
  out_BSNHU, state = run(
    q, k, v, beta_H, state, reset_BS, mask, rule, rope_theta, scale_first_segment
  )
  out_BTHU = out_BSNHU.reshape(B, S * N, *out_BSNHU.shape[3:])[:, :T]
  if mask_BT is not None:
    out_BTHU = jnp.where(mask_BT[..., None, None], out_BTHU, jnp.zeros((), out_BTHU.dtype))
  return out_BTHU, state


def _parallel(q_BSNHE, k_BSNKE, v_BSNKU, beta_H, state, reset_BS, mask_BSN, rule, theta, literal):
  with jax.named_scope("local"):
    turn = jax.vmap(lambda x: _rotate_segment(x, theta), 1, 1)
    local = segment_attention(turn(q_BSNHE), turn(k_BSNKE), v_BSNKU, mask_BSN)
  with jax.named_scope("memory"):
    before, after = mem.prefix(k_BSNKE, v_BSNKU, state, reset_BS, mask_BSN, rule)
    recalled = jax.vmap(mem.read, 1, 1)(q_BSNHE, before)
  mix = jax.vmap(lambda local, recalled, z: _mix(local, recalled, z, beta_H, literal), 1, 1)
  return mix(local, recalled, before.z_BKE), after


def _scan(q_BSNHE, k_BSNKE, v_BSNKU, beta_H, state, reset_BS, mask_BSN, rule, theta, literal):
  @jax.checkpoint
  def segment(memory, xs):
    q, k, v, reset_B, mask = xs
    memory = mem.where_lane(reset_B, 0, memory)
    turned = (_rotate_segment(q, theta)[:, None], _rotate_segment(k, theta)[:, None], v[:, None])
    local = segment_attention(*turned, None if mask is None else mask[:, None])[:, 0]
    out = _mix(local, mem.read(q, memory), memory.z_BKE, beta_H, literal)
    return mem.commit(memory, mem.summarize(k, v, memory, mask, rule)), out

  xs = (q_BSNHE, k_BSNKE, v_BSNKU, reset_BS, mask_BSN)
  state, out_SBNHU = jax.lax.scan(segment, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs))
  return jnp.moveaxis(out_SBNHU, 0, 1), state


class InfiniStream(NamedTuple):
  """A layer's state while its segment is open: constant in size, however much was read."""

  memory: MemoryState  # of the closed segments; this alone is read
  pending: Update  # what the open segment will add when it closes
  cache: SegmentCache  # the open segment's rotated keys and values


def open_stream(state: MemoryState, cache: SegmentCache, rule: str) -> InfiniStream:
  """Begins a segment after whole ones: nothing pending, `cache` empty."""
  nothing = jnp.zeros_like(state.M_BKEU)
  pending = Update(nothing, nothing if rule == "delta" else None, jnp.zeros_like(state.z_BKE))
  return InfiniStream(state, pending, cache)


def extend_stream(
  q_BTHE: Float[Array, "B T H E"],
  k_BTKE: Float[Array, "B T K E"],
  v_BTKU: Float[Array, "B T K U"],
  beta_H: Float[Array, " H"],
  stream: InfiniStream,
  mask_BT: Bool[Array, "B T"],
  *,
  rule: str,
  rope_theta: float | None,
  scale_first_segment: bool = False,
) -> tuple[Float[Array, "B T H U"], InfiniStream]:
  """T more tokens of each lane's open segment; closes it when it is full.

  Equal to `infini_attention` over the same tokens. Each lane stands at its own place in its
  segment; its tokens come first in its row of `mask_BT` and never run past the segment's end.
  """
  N = stream.cache.k_BNKE.shape[1]
  position_BT = stream.cache.fill_B[:, None] + jnp.arange(q_BTHE.shape[1], dtype=jnp.int32)[None]
  turn = (lambda x: x) if rope_theta is None else (lambda x: rotate(x, position_BT, rope_theta))
  local, cache = extend_segment(turn(q_BTHE), turn(k_BTKE), v_BTKU, stream.cache, mask_BT)
  memory = stream.memory
  out = _mix(local, mem.read(q_BTHE, memory), memory.z_BKE, beta_H, scale_first_segment)

  more = mem.summarize(k_BTKE, v_BTKU, memory, mask_BT, rule)
  pending = jax.tree.map(jnp.add, stream.pending, more)
  full_B = cache.fill_B == N
  memory = mem.where_lane(full_B, mem.commit(memory, pending), memory)
  pending = mem.where_lane(full_B, 0, pending)
  return out, InfiniStream(
    memory, pending, cache._replace(fill_B=jnp.where(full_B, 0, cache.fill_B))
  )


def _rotate_segment(x_BNHE: Array, theta: float | None) -> Array:
  if theta is None:
    return x_BNHE
  return rotate(x_BNHE, jnp.arange(x_BNHE.shape[1], dtype=jnp.int32)[None], theta)


def _mix(local_BNHU, recalled_BNHU, z_BKE, beta_H, scale_first_segment):
  """The gate, equation (10), in float32."""
  gate_H = jax.nn.sigmoid(beta_H.astype(jnp.float32))[None, None, :, None]
  local = local_BNHU.astype(jnp.float32)
  mixed = gate_H * recalled_BNHU + (1 - gate_H) * local
  if not scale_first_segment:
    B, N, H, U = local.shape
    K = z_BKE.shape[1]
    by_kv_head = lambda x: split_heads(x, K)
    empty_BK = mem.is_empty(z_BKE)
    mixed = jnp.where(empty_BK[:, None, :, None, None], by_kv_head(local), by_kv_head(mixed))
    mixed = mixed.reshape(B, N, H, U)
  return mixed.astype(local_BNHU.dtype)


def _check(q, k, v, beta, segment_length, rule, implementation):
  if rule not in ("linear", "delta"):
    raise ValueError(f"rule={rule!r}: choose 'linear' or 'delta'")
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
