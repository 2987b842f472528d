"""Infini-attention: local attention inside segments, mixed with a memory of all earlier ones."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops import kernels, memory_kernels
from infini_jax.ops import memory as mem
from infini_jax.ops.attention import (
  PLAIN,
  QKV,
  Scoring,
  to_segments,
)
from infini_jax.ops.inputs import Inputs, summary
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.local import LocalAttention
from infini_jax.ops.memory import MemoryState
from infini_jax.ops.rotary import Rope, computed
from infini_jax.ops.rule import Rule, as_rule
from infini_jax.ops.shards import axis_size, on_shards, token_axes

NO_KERNELS = ("normalize_keys", "z_correction", "readout_norm")  # fields of `Rule`
MEMORY = MemoryState("BKEU", "BKE")  # type: ignore[arg-type]  # the letters of its arrays


class Mixing(NamedTuple):
  """How local output and read-out become one."""

  beta_H: Array
  rule: Rule
  cut: Array | None

  def __call__(self, local_BNHU: Array, recalled_BNHU: Array, z_BKE: Array) -> Array:
    """`ops.memory.mix`."""
    return mem.mix(local_BNHU, recalled_BNHU, z_BKE, *self)

  def gate(self, z_BSKE: Array) -> Array:
    """The share of the memory in each segment and query head, (B,S,H)."""
    B, S, K = z_BSKE.shape[:3]
    gate_BSH = jnp.broadcast_to(
      mem.gate_values(self.beta_H, self.rule.gate)[None, None], (B, S, len(self.beta_H))
    )
    if self.rule.scale_first_segment:
      return gate_BSH
    empty_BSK = mem.is_empty(z_BSKE)[..., None]
    return jnp.where(empty_BSK, 0.0, gate_BSH.reshape(B, S, K, -1)).reshape(B, S, -1)


class Form(NamedTuple):
  """How a chunk is computed."""

  run: Callable  # `_scan`, `_parallel` or `_kernels`
  rule: Rule
  local: LocalAttention


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

      out = g recalled + (1 - g) local,    g = sigmoid(beta)

  and then writes the segment. T need not be a multiple of N: a short last segment is written too.

  Args:
    q_BTHE, k_BTKE, v_BTKU: un-rotated; H is a multiple of K, head `h` belongs to kv head `h // G`.
    beta_H: the gate of each query head, before `rule.gate` is applied.
    state: the memory after earlier calls; None is an empty one.
    segment_length: N, in tokens.
    rule: 'linear' or 'delta', or a `Rule`, which has more choices.
    rope_theta: when given (see `ops.rotary`), rotary positions, restarting in each segment, serve
      the local attention; the memory has no positions.
    scoring: the scale of the local attention's scores, and their softcap.
    reset_BS: True where a segment starts a new document: the memory is emptied before it.
    mask_BT: False for padding, which is neither seen nor written; its outputs are 0. The kernels of
      TPUs and GPUs need it last in its segment.
    write_BTK: how much of a token is written to the memory of each head, 0 to 1; None: all of it.
    decay_BTK: of a segment, the memory leaves `sigmoid` of the mean of its tokens' scores (Gated
      DeltaNet, arXiv 2412.06464, by segments); None: what the rule says.
    own: the memory's own queries, keys and values; None: those of the local attention.
    cut: True reads 0 from a memory that is not empty, `out = (1 - g) local`, and writes as
      otherwise: the ablation of the reads. None: the same as False.
    implementation: 'scan' goes through the segments one by one and recomputes them in the backward
      pass (least memory); 'parallel' is the exact prefix form; 'kernels' is the same by
      `ops.memory_kernels`. 'auto' is 'kernels' on a TPU where they can do it, else 'parallel'.
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
      f"reset_BS has shape {reset_BS.shape}; {T} tokens in segments of {segment_length} need "
      f"{(B, S)}"
    )
  axes = token_axes(q_BTHE)
  axis = axes["T"] if axis_size(axes["T"]) > 1 else None
  if axis is not None:
    _check_divided(T, segment_length, axis, rule, implementation)
  form = choose_form(implementation, q_BTHE, v_BTKU, segment_length, rule)
  run = _scan if form == "scan" else partial(FORMS[form], axis=axis)
  local = LocalAttention(rope_theta, attention, scoring)
  return on_shards(
    partial(_segments, N=segment_length, form=Form(run, rule, local)),
    axes,
    ("BTHU", MEMORY),
    inputs=Inputs(q_BTHE, k_BTKE, v_BTKU, mask_BT, write_BTK, decay_BTK, own and QKV(*own)),
    beta_H=beta_H,
    state=state,
    reset_BS=reset_BS,
    cut=cut,
    rope=computed(rope_theta),
  )


def _segments(inputs, beta_H, state, reset_BS, cut, rope, *, N, form):
  """On one device: cut into segments, run, and joined again."""
  B, T = inputs.q_BTHE.shape[:2]
  S = -(-T // N)
  mask_BT = inputs.mask_BT
  if T % N and mask_BT is None:
    mask_BT = jnp.ones((B, T), bool)
  state = mem.empty_memory(inputs.k_BTKE, inputs.v_BTKU) if state is None else state
  reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
  inputs = jax.tree.map(lambda x: to_segments(x, N), inputs._replace(mask_BT=mask_BT))
  local = form.local.computed(rope)
  mix = Mixing(beta_H, form.rule, cut)
  out_BSNHU, state = form.run(inputs, state, reset_BS, form.rule, local, mix)
  out_BTHU = out_BSNHU.reshape(B, S * N, *out_BSNHU.shape[3:])[:, :T]
  if mask_BT is not None:
    out_BTHU = jnp.where(mask_BT[..., None, None], out_BTHU, jnp.zeros((), out_BTHU.dtype))
  return out_BTHU, state


def _parallel(inputs, state, reset_BS, rule, local, mix, *, axis):
  """All segments side by side. The arrays of `inputs` have S before N = T."""
  with jax.named_scope("local"):
    local_BSNHU = local(*inputs[:4])
  with jax.named_scope("memory"):
    q_BSNHE, k_BSNKE, v_BSNKU = inputs.memory()
    how = reset_BS, inputs.mask_BT, rule, axis, inputs.write_BTK, inputs.decay_BTK
    before, after = mem.prefix(k_BSNKE, v_BSNKU, state, *how)
    recalled = jax.vmap(mem.read, 1, 1)(q_BSNHE, before)
  return jax.vmap(mix, 1, 1)(local_BSNHU, recalled, before.z_BKE), after


def _kernels(inputs, state, reset_BS, rule, local, mix, *, axis):
  """`_parallel` by `ops.memory_kernels`: the same arrays, but heads first on a TPU.

  Queries, keys and values go from kernel to kernel, so that the gradients of all that use them are
  summed by kernels too.
  """
  on, (B, S, N) = kernels.platform(), inputs.q_BTHE.shape[:3]
  splash = local.is_splash(inputs.q_BTHE, inputs.v_BTKU)
  order = "BHSNE" if on == "tpu" else "BSNHE"
  arrange = lambda x: jnp.transpose(x, (0, 3, 1, 2, 4)) if on == "tpu" else x
  restore = lambda x: jnp.transpose(x, (0, 2, 3, 1, 4)) if on == "tpu" else x
  q, k, v = map(arrange, (inputs.q_BTHE, inputs.k_BTKE, inputs.v_BTKU))
  if splash:
    with jax.named_scope("local"):
      (rotated_q, q), (rotated_k, k) = local.rotated(q, k)

  with jax.named_scope("memory"):
    own = inputs.own and tuple(map(arrange, inputs.own))
    own_q, own_k, own_v = own or (q, k, v)
    count_BSKN = _counts(inputs, B, S, N)
    written, keys, own_v = memory_kernels.write(own_k, own_v, count_BSKN, order=order, on=on)
    v = v if own else own_v
    erased = lambda z_BSKE: memory_kernels.erase(own_k, count_BSKN, z_BSKE, order=order, on=on)
    scores = None
    if inputs.decay_BTK is not None:
      scores = mem.segment_scores(inputs.decay_BTK, inputs.mask_BT)
    sums = mem.Sums(written, keys, erased)
    (M_BSKEU, z_BSKE), after = mem.recurrence(sums, state, reset_BS, rule, axis, scores)
    M_BSKEU = M_BSKEU if mix.cut is None else jnp.where(mix.cut, 0.0, M_BSKEU)

  with jax.named_scope("local"):
    if splash:
      out, local_order = local.attend(rotated_q, rotated_k, v), "BKSGNE"
    else:
      out, local_order = arrange(local(*inputs[:2], restore(v), inputs.mask_BT)), order
  with jax.named_scope("memory"):
    memory = M_BSKEU, z_BSKE, mix.gate(z_BSKE)
    out = memory_kernels.read(own_q, out, *memory, order=order, local_order=local_order, on=on)
  return restore(out), after


def _counts(inputs, B, S, N):
  """How much each token is written, (B,S,K,N); K is 1 where it is the same in all heads."""
  count_BSKN = jnp.ones((B, S, 1, N), jnp.float32)
  if inputs.write_BTK is not None:
    write_BSNK = inputs.write_BTK
    count_BSKN = jnp.swapaxes(jnp.broadcast_to(write_BSNK, (B, S, N, write_BSNK.shape[-1])), 2, 3)
  if inputs.mask_BT is not None:
    count_BSKN = jnp.where(inputs.mask_BT[:, :, None], count_BSKN, 0)
  return count_BSKN


def _scan(inputs, state, reset_BS, rule, local, mix):
  """One segment after the other; the same arrays."""

  @jax.checkpoint
  def segment(memory, xs):
    inputs, reset_B = xs
    memory = where_lane(reset_B, 0, memory)
    alone = jax.tree.map(lambda x: x[:, None], inputs)
    with jax.named_scope("local"):
      local_BNHU = local(*alone[:4])[:, 0]
    out_BNHU = mix(local_BNHU, mem.read(inputs.memory().q_BTHE, memory), memory.z_BKE)
    return mem.commit(memory, summary(inputs, memory, rule), rule), out_BNHU

  by_segment = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, reset_BS))
  state, out_SBNHU = jax.lax.scan(segment, state, by_segment)
  return jnp.moveaxis(out_SBNHU, 0, 1), state


def choose_form(implementation: str, q: Array, v: Array, N: int, rule: Rule) -> str:
  """'scan', 'parallel' or 'kernels'."""
  if implementation in ("scan", "parallel"):
    return implementation
  on = kernels.platform()
  reason = no_kernels(on, N, q.shape[-1], v.shape[-1], rule)
  if implementation == "auto":
    return "kernels" if on == "tpu" and reason is None else "parallel"
  if reason:
    raise ValueError(f"implementation='kernels': {reason}; choose 'auto' or 'parallel'")
  return "kernels"


def no_kernels(on: str, N: int, E: int, U: int, rule: Rule) -> str | None:
  """The reason why `implementation='kernels'` is not possible; None if it is.

  Args:
    on: the platform, 'cpu', 'gpu' or 'tpu'.
    N, E, U: tokens of a segment, sizes of a key and a value.
    rule: how the memory is written and mixed.
  """
  refined = [name for name in NO_KERNELS if getattr(rule, name)]
  if refined:
    return f"memory.{refined[0]} has plain JAX alone"
  return memory_kernels.why_not(on, N, E, U)


FORMS = {"parallel": _parallel, "kernels": _kernels}


def _check_divided(T, segment_length, axis, rule, implementation):
  """The requirements of a sequence that is divided over devices."""
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
  if implementation not in ("auto", "scan", *FORMS):
    raise ValueError(
      f"implementation={implementation!r}: choose 'auto', 'scan', 'parallel' or 'kernels'"
    )
  if segment_length < 1:
    raise ValueError(f"segment_length={segment_length}: must be at least 1")
  if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
    raise ValueError(
      f"q {q.shape}, k {k.shape}, v {v.shape}: need (B,T,H,E), (B,T,K,E), (B,T,K,U) of one B, T, E"
    )
  if q.shape[2] % k.shape[2] or beta.shape != (q.shape[2],):
    raise ValueError(
      f"{q.shape[2]} query heads, {k.shape[2]} key/value heads, beta {beta.shape}: "
      f"H must be a multiple of K, and beta must have one number per query head"
    )
