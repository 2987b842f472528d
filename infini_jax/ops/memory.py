"""The compressive memory `(M, z)`: read, mix, write, and its exact prefix form over segments.

Equations (7) to (10) of the paper (arXiv 2404.07143v2), with `sigma(x) = elu(x) + 1` on un-rotated
queries and keys:

    read     recalled = sigma(q) M / (sigma(q) z)                   0 where the memory is empty
    linear   M' = M + sigma(k)^T v                                  z' = z + sum_t sigma(k_t)
    delta    M' = M + sigma(k)^T (v - sigma(k) M / (sigma(k) z))    z' as above

    mix      out = g recalled + (1 - g) local,  g = sigmoid(beta)   local: attention in the segment

The paper writes `recalled` as A_mem, `local` as A_dot and `out` as A.

`Rule` holds the choice between the two, and refinements that are not the paper's.

A segment's write is a sum over its tokens, so it is kept as an `Update`. It can grow token by token
(decoding), or be made at once (a block). In the prefix form it is made for all segments side by
side: there delta is the affine recurrence `M' = M - erase M + written` with `z` known first.
Everything is float32 for every type of the inputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops.attention import split_heads
from infini_jax.ops.lanes import each_in_turn
from infini_jax.ops.rule import Rule
from infini_jax.ops.shards import carried

# Delta stays contractive while a segment adds at most so many times what z holds.
DELTA_GROWTH = 2.0
READOUT_EPSILON = 1e-6  # added to the mean square of a read-out


class MemoryState(NamedTuple):
  """The memory of all closed segments of a layer, per lane and key/value head; float32."""

  M_BKEU: Array
  z_BKE: Array


class Update(NamedTuple):
  """The update by one segment, as sums over its tokens."""

  written_BKEU: Array
  recalled_BKEU: Array | None  # values recalled under the keys: delta
  keys_BKE: Array
  new_BKE: Array | None  # the part of the keys that z does not hold yet: z-correction
  scores_BK: Array | None = None  # the sum of the scores of a learned decay,
  tokens_BK: Array | None = None  # and of how many tokens


def sigma(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """`elu(x) + 1` in float32, without the cancellation of computing it so for negative `x`."""
  x = x.astype(jnp.float32)
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def empty_memory(k_BTKE: Float[Array, "B T K E"], v_BTKU: Float[Array, "B T K U"]) -> MemoryState:
  """An empty memory for these keys and values."""
  B, _, K, E = k_BTKE.shape
  M_BKEU = jnp.zeros((B, K, E, v_BTKU.shape[-1]), jnp.float32)
  return MemoryState(M_BKEU, jnp.zeros((B, K, E), jnp.float32))


def is_empty(z_BKE: Float[Array, "*B K E"]) -> Bool[Array, "*B K"]:
  """True for the heads whose memory is empty."""
  return z_BKE.max(-1) == 0


def read(q_BNHE: Float[Array, "B N H E"], memory: MemoryState) -> Float[Array, "B N H U"]:
  """What the memory holds under each query, equation (7); 0 where it is empty. float32.

  Query head `h` reads the memory of key/value head `h // G`.
  """
  B, N, H, _ = q_BNHE.shape
  K = memory.z_BKE.shape[1]
  q_BNKGE = split_heads(sigma(q_BNHE), K)
  value = jnp.einsum("BNKGE,BKEU->BNKGU", q_BNKGE, memory.M_BKEU)
  weight = jnp.einsum("BNKGE,BKE->BNKG", q_BNKGE, memory.z_BKE)
  return _divide(value, weight[..., None]).reshape(B, N, H, -1)


def gate_values(beta: Float[Array, "..."], kind: str = "sigmoid") -> Float[Array, "..."]:
  """The share of the memory that `beta` gives, 0 to 1, in float32; a kind of `rules.GATES`."""
  share: Array = getattr(jax.nn, kind)(beta.astype(jnp.float32))
  return share


def mix(
  local_BNHU: Float[Array, "B N H U"],
  recalled_BNHU: Float[Array, "B N H U"],
  z_BKE: Float[Array, "B K E"],
  beta_H: Float[Array, " H"],
  rule: Rule,
  cut: Bool[Array, ""] | None = None,
) -> Float[Array, "B N H U"]:
  """Local output and read-out by the gate of each head, equation (10), in the type of the former.

  Args:
    local_BNHU: the output of local attention.
    recalled_BNHU: the read-out of the memory, float32.
    z_BKE: of the memory that was read: it says which heads have an empty one.
    beta_H: the gate of each query head, before `rule.gate` is applied.
    rule: how they are mixed.
    cut: True takes 0 for every read-out.
  """
  gate_H = gate_values(beta_H, rule.gate)[None, None, :, None]
  local, recalled = local_BNHU.astype(jnp.float32), recalled_BNHU
  if rule.readout_norm:
    square = jnp.mean(recalled * recalled, -1, keepdims=True)
    recalled = recalled * jax.lax.rsqrt(square + READOUT_EPSILON)
  if cut is not None:
    recalled = jnp.where(cut, 0.0, recalled)
  mixed = gate_H * recalled + (1 - gate_H) * local
  if not rule.scale_first_segment:
    by_kv_head = lambda x: split_heads(x, z_BKE.shape[1])
    empty_BK = is_empty(z_BKE)[:, None, :, None, None]
    mixed = jnp.where(empty_BK, by_kv_head(local), by_kv_head(mixed)).reshape(local.shape)
  return mixed.astype(local_BNHU.dtype)


def no_update(memory: MemoryState, rule: Rule, scored: bool = False) -> Update:
  """The update of a segment without tokens; `scored`: its decay is by the scores of its tokens."""
  no_M, no_z = jax.tree.map(jnp.zeros_like, memory)
  recalled, new = no_M if rule.affine else None, no_z if rule.z_correction else None
  return Update(no_M, recalled, no_z, new, *((no_z[..., 0],) * 2 if scored else (None, None)))


def joined(update: Update, more: Update) -> Update:
  """The update by the tokens of both."""
  return jax.tree.map(jnp.add, update, more)


def summarize(
  k_BNKE: Float[Array, "B N K E"],
  v_BNKU: Float[Array, "B N K U"],
  memory: MemoryState,
  mask_BN: Bool[Array, "B N"] | None,
  rule: Rule,
  write_BNK: Float[Array, "B N K"] | None = None,
  decay_BNK: Float[Array, "B N K"] | None = None,
) -> Update:
  """The update of `memory` by these tokens, equations (8) and (9). Masked tokens have no effect.

  A token counts `write_BNK` times in each head; 0 is the same as a masked one, and above 1 the
  linear rule writes it as often. With `decay_BNK` the segment leaves `sigmoid` of the mean of these
  scores of what was there.
  """
  whole_BNKE = _keys(k_BNKE, rule)
  k_BNKE = _written(whole_BNKE, mask_BN, write_BNK)
  v_BNKU = v_BNKU.astype(jnp.float32)
  written = jnp.einsum("BNKE,BNKU->BKEU", k_BNKE, v_BNKU)
  recalled = None
  if rule.affine:
    value = jnp.einsum("BNKE,BKEU->BNKU", whole_BNKE, memory.M_BKEU)
    weight = jnp.einsum("BNKE,BKE->BNK", whole_BNKE, memory.z_BKE)
    recalled = jnp.einsum("BNKE,BNKU->BKEU", k_BNKE, _divide(value, weight[..., None]))
  new = _new_keys(whole_BNKE, k_BNKE, memory.z_BKE) if rule.z_correction else None
  scored = (None, None) if decay_BNK is None else segment_scores(decay_BNK, mask_BN)
  return Update(written, recalled, k_BNKE.sum(1), new, *scored)


def commit(memory: MemoryState, update: Update, rule: Rule) -> MemoryState:
  """The memory after a segment is closed."""
  left_BK = _left(update.keys_BKE, rule, update.scores_BK, update.tokens_BK)
  M_BKEU = _fade(memory.M_BKEU, left_BK) + update.written_BKEU
  if update.recalled_BKEU is not None:
    share_BK = _fade(_damping(update.keys_BKE, memory.z_BKE, rule), left_BK)
    M_BKEU -= share_BK[..., None, None] * update.recalled_BKEU
  new_BKE = update.keys_BKE if update.new_BKE is None else update.new_BKE
  return MemoryState(M_BKEU, _fade(memory.z_BKE, left_BK) + new_BKE)


def fast_forward(
  before: MemoryState, after: MemoryState, times_B: Float[Array, " B"]
) -> MemoryState:
  """The memory as if the text between two states was read `times_B` times.

      M = M0 + times (M1 - M0)        z = z0 + times (z1 - z0)

  With the linear rule it is exact where keys and values do not depend on what was read, as in the
  first layer of a model. Else it takes them to be the same each time. Delta erases less and less
  when it reads the same again, so there a piece must be small compared with what was read before
  it. A sum of float32 numbers is exact to one part in 16 million: it can still add a single token
  to as many.
  """

  def one(x0, x1):
    times = times_B.reshape(-1, *(1,) * (x1.ndim - 1))
    return jnp.where(times == 1, x1, x0 + times * (x1 - x0))

  return jax.tree.map(one, before, after)


def prefix(
  k_BSNKE: Float[Array, "B S N K E"],
  v_BSNKU: Float[Array, "B S N K U"],
  memory: MemoryState,
  reset_BS: Bool[Array, "B S"],
  mask_BSN: Bool[Array, "B S N"] | None,
  rule: Rule,
  axis: str | None = None,
  write_BSNK: Float[Array, "B S N K"] | None = None,
  decay_BSNK: Float[Array, "B S N K"] | None = None,
) -> tuple[MemoryState, MemoryState]:
  """The memory before each of S segments, and after the last: every product is batched over S.

  Only the recurrences over `z` and over `M` are sequential, and they touch nothing but states; with
  z-correction that over `z` reads the keys too.

  With `axis`, each device of that mesh axis holds S segments of a longer sequence, in order. Both
  recurrences are affine in the state that comes in: each device runs its own from an empty state,
  and what the segments before it hold is carried over and added. What is sent is one state, and
  for delta an E x E matrix that acts on it, however long the sequence is.

  Args:
    k_BSNKE, v_BSNKU: un-rotated keys, and values.
    memory: before the first segment, of all devices.
    reset_BS: True where the memory is emptied before a segment.
    mask_BSN: False for padding.
    rule: how a segment is written.
    axis: the mesh axis over which the segments are divided; z-correction is not affine.
    write_BSNK: how much each token counts, as in `summarize`.
    decay_BSNK: scores of a learned decay, as in `summarize`.

  Returns:
    The memory that each segment reads, with an axis S after B; and the memory after them all.
  """
  whole_BSNKE = _keys(k_BSNKE, rule)
  k_BSNKE = _written(whole_BSNKE, mask_BSN, write_BSNK)
  written_BSKEU = jnp.einsum("BSNKE,BSNKU->BSKEU", k_BSNKE, v_BSNKU.astype(jnp.float32))

  def erased(z_BSKE):
    weight_BSNK = jnp.einsum("BSNKE,BSKE->BSNK", whole_BSNKE, z_BSKE)
    scaled_BSNKE = _divide(whole_BSNKE, weight_BSNK[..., None])
    return jnp.einsum("BSNKE,BSNKZ->BSKEZ", k_BSNKE, scaled_BSNKE)

  sums = Sums(written_BSKEU, k_BSNKE.sum(2), erased, (whole_BSNKE, k_BSNKE))
  scores = None if decay_BSNK is None else segment_scores(decay_BSNK, mask_BSN)
  return recurrence(sums, memory, reset_BS, rule, axis, scores)


class Sums(NamedTuple):
  """The update by each of S segments, as sums over its tokens."""

  written_BSKEU: Array
  keys_BSKE: Array
  erased: Callable  # from z_BSKE before the segments to erase_BSKEZ; delta subtracts `erase M`
  pairs: tuple[Array, Array] | None = None  # keys, and written keys, BSNKE: z-correction alone


def recurrence(
  sums: Sums,
  memory: MemoryState,
  reset_BS: Bool[Array, "B S"],
  rule: Rule,
  axis: str | None = None,
  scores: tuple[Array, Array] | None = None,
) -> tuple[MemoryState, MemoryState]:
  """`prefix`, from the sums of each segment; `scores` are those of `segment_scores`."""
  keys_BSKE = sums.keys_BSKE
  left_BSK = _left(keys_BSKE, rule, *(scores or (None, None)))
  over_segments = partial(each_in_turn, reset_BS)

  def step_z(z_BKE, left_BK, keys_BKE, keys):
    new_BKE = keys_BKE if keys is None else _new_keys(keys[0], keys[1], z_BKE)
    return _fade(z_BKE, left_BK) + new_BKE

  corrected = sums.pairs if rule.z_correction else None
  kept: Any = None
  if axis is None:
    z_BSKE, z_BKE = over_segments(step_z, memory.z_BKE, left_BSK, keys_BSKE, corrected)
  else:
    # What is left of a state that comes in: a share of it, before each segment and in the end.
    kept = over_segments(_fade, jnp.ones_like(memory.z_BKE[..., 0]), left_BSK)
    own = over_segments(step_z, jnp.zeros_like(memory.z_BKE), left_BSK, keys_BSKE, None)
    z_BSKE, z_BKE = carried(kept, own, memory.z_BKE, axis)

  erase_BSKEZ = None
  if rule.affine:
    erase_BSKEZ = sums.erased(z_BSKE)
    erase_BSKEZ *= _fade(_damping(keys_BSKE, z_BSKE, rule), left_BSK)[..., None, None]

  def step_M(M_BKEU, left_BK, erase_BKEZ, written_BKEU):
    M_next = _fade(M_BKEU, left_BK)
    if erase_BKEZ is not None:
      M_next -= jnp.einsum("BKEZ,BKZU->BKEU", erase_BKEZ, M_BKEU, precision="highest")
    return M_next if written_BKEU is None else M_next + written_BKEU

  if axis is None:
    M_BSKEU, M_BKEU = over_segments(
      step_M, memory.M_BKEU, left_BSK, erase_BSKEZ, sums.written_BSKEU
    )
  else:
    if erase_BSKEZ is not None:  # a matrix is what is left: that of the recurrence itself
      E = keys_BSKE.shape[-1]
      whole = jnp.broadcast_to(jnp.eye(E), (*memory.z_BKE.shape, E))
      kept = over_segments(step_M, whole, left_BSK, erase_BSKEZ, None)
    own = over_segments(
      step_M, jnp.zeros_like(memory.M_BKEU), left_BSK, erase_BSKEZ, sums.written_BSKEU
    )
    M_BSKEU, M_BKEU = carried(kept, own, memory.M_BKEU, axis)
  return MemoryState(M_BSKEU, z_BSKE), MemoryState(M_BKEU, z_BKE)


def _keys(k: Array, rule: Rule) -> Array:
  """Keys (..., E) in the form for reads and for the recall of delta."""
  k = sigma(k)
  return _divide(k, k.sum(-1, keepdims=True)) if rule.normalize_keys else k


def _written(k: Array, mask: Array | None, write: Array | None) -> Array:
  """Keys (..., N, K, E) times their write fractions."""
  if write is not None:
    k *= write[..., None]
  return k if mask is None else jnp.where(mask[..., None, None], k, 0.0)


def _new_keys(whole_BNKE: Array, k_BNKE: Array, z_BKE: Array) -> Array:
  """The sum over the tokens of the new part of their keys: z-correction."""
  held_BNK = jnp.einsum("BNKE,BKE->BNK", whole_BNKE, z_BKE)
  gamma_BNK = jnp.clip(1 - _divide(held_BNK, (whole_BNKE * whole_BNKE).sum(-1)), 0, 1)
  return jnp.einsum("BNK,BNKE->BKE", jax.lax.stop_gradient(gamma_BNK), k_BNKE)


def _left(
  keys_BKE: Array, rule: Rule, scores_BK: Array | None, tokens_BK: Array | None
) -> Array | None:
  """The fraction of each head's memory that remains after a segment with these keys; None: 1."""
  if scores_BK is None and rule.decay == 1:
    return None
  decay = jnp.float32(rule.decay)
  if scores_BK is not None and tokens_BK is not None:
    decay *= jax.nn.sigmoid(scores_BK / jnp.maximum(tokens_BK, 1))
  # A segment of padding alone does not change the memory, so it has no decay.
  return jnp.where(is_empty(keys_BKE), 1.0, decay)


def segment_scores(decay: Array, mask: Array | None) -> tuple[Array, Array]:
  """The sums of scores (..., N, K) over the real tokens of a segment, and how many these are."""
  mask = jnp.ones_like(decay[..., 0], bool) if mask is None else mask
  real = jnp.broadcast_to(mask[..., None], decay.shape)
  return jnp.where(real, decay, 0.0).sum(-2), real.sum(-2, dtype=jnp.float32)


def _fade(x: Array, left_BK: Array | None) -> Array:
  if left_BK is None:
    return x
  return x * left_BK.reshape(*left_BK.shape, *(1,) * (x.ndim - left_BK.ndim))


def _divide(value: Array, weight: Array) -> Array:
  # The double `where` keeps the gradient finite where the weight is 0. No epsilon is needed: the
  # weights are sums of positive terms, so the quotient is a weighted mean however small they are
  # (except with z-correction, whose z holds less than was written).
  safe = jnp.where(weight > 0, weight, 1.0)
  return jnp.where(weight > 0, value / safe, 0.0)


def _damping(keys: Array, z: Array, rule: Rule) -> Array:
  # I - P has eigenvalues down to 1 - rho(P), and by Collatz and Wielandt rho(P) lies between the
  # least and the greatest of keys/z. Segments of equal length have a ratio of at most about 1 and
  # are never damped; after a much shorter first one, recall is scaled until the ratio is the bound.
  #
  # Decay does not change this: z holds the last segment's keys whole. With z-correction z may stay
  # as small as after the short segment, and every segment is damped. A bound on the mean of keys/z,
  # which is the ratio of the sums, is then too weak: in every segment rho(P) exceeds it a little.
  # A bound on their maximum gives rho(P) <= DELTA_GROWTH = 2, and therefore |I - P| <= 1, because P
  # is symmetric and positive semidefinite.
  # P z = keys holds for uncorrected keys, so `keys` are uncorrected in both cases. Like gamma, the
  # bound has no gradient: the gradient of a division by a very small element of z can overflow.
  growth = _divide(keys.sum(-1), z.sum(-1))
  if rule.z_correction:
    growth = jax.lax.stop_gradient(_divide(keys, z).max(-1))
  return jnp.minimum(1.0, DELTA_GROWTH / jnp.maximum(growth, 1.0))
