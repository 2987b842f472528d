"""The compressive memory `(M, z)`: read, write, and its exact prefix form over segments.

Equations (7) to (9) of the paper (arXiv 2404.07143v2), with `sigma(x) = elu(x) + 1` on un-rotated
queries and keys:

    read     A_mem = sigma(Q) M / (sigma(Q) z)                      0 where the memory is empty
    linear   M' = M + sigma(K)^T V                                  z' = z + sum_t sigma(K_t)
    delta    M' = M + sigma(K)^T (V - sigma(K) M / (sigma(K) z))    z' as above

A segment's write is a sum over its tokens, so it is kept as an `Update` that can grow token by
token (decoding), be made at once (a block), or be made for all segments side by side (the prefix
form, where delta is the affine recurrence `M' = (I - P) M + U` with `z` known first).
Everything is float32 whatever the type of the inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops.attention import split_heads

# Delta stays contractive while a segment adds at most so many times what z holds.
DELTA_GROWTH = 2.0


class MemoryState(NamedTuple):
  """What a layer remembers of all closed segments, per lane and key/value head; float32."""

  M_BKEU: Array
  z_BKE: Array


class Update(NamedTuple):
  """What one segment adds: written values, values recalled under its keys (delta), and keys."""

  written_BKEU: Array
  recalled_BKEU: Array | None
  keys_BKE: Array


def sigma(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """`elu(x) + 1` in float32, without the cancellation of computing it so for negative `x`."""
  x = x.astype(jnp.float32)
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def empty_memory(k_BTKE: Float[Array, "B T K E"], v_BTKU: Float[Array, "B T K U"]) -> MemoryState:
  """An empty memory for these keys and values, sharded as they are over lanes and heads."""
  B, _, K, E = k_BTKE.shape
  lanes, _, heads, _ = tuple(jax.typeof(k_BTKE).sharding.spec) or (None,) * 4

  def zeros(*shape):
    spec = jax.P(lanes, heads, *(None,) * (len(shape) - 2))
    mesh = jax.sharding.get_abstract_mesh()
    return jnp.zeros(shape, jnp.float32, out_sharding=None if mesh.empty else spec)

  return MemoryState(zeros(B, K, E, v_BTKU.shape[-1]), zeros(B, K, E))


def where_lane(flag_B: Bool[Array, " B"], yes, no):
  """Chooses between two states lane by lane; `yes` may be a scalar."""

  def choose(n, y):
    return jnp.where(flag_B.reshape(-1, *(1,) * (n.ndim - 1)), y, n)

  if isinstance(yes, (int, float)):
    return jax.tree.map(lambda n: choose(n, jnp.array(yes, n.dtype)), no)
  return jax.tree.map(choose, no, yes)


def is_empty(z_BKE: Float[Array, "B K E"]) -> Bool[Array, "B K"]:
  """True for the heads that nothing was ever written to."""
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


def summarize(
  k_BNKE: Float[Array, "B N K E"],
  v_BNKU: Float[Array, "B N K U"],
  memory: MemoryState,
  mask_BN: Bool[Array, "B N"] | None,
  rule: str,
) -> Update:
  """What these tokens add to `memory`, equations (8) and (9). Masked tokens add nothing."""
  k_BNKE = _keys(k_BNKE, mask_BN)
  v_BNKU = v_BNKU.astype(jnp.float32)
  written = jnp.einsum("BNKE,BNKU->BKEU", k_BNKE, v_BNKU)
  recalled = None
  if rule == "delta":
    value = jnp.einsum("BNKE,BKEU->BNKU", k_BNKE, memory.M_BKEU)
    weight = jnp.einsum("BNKE,BKE->BNK", k_BNKE, memory.z_BKE)
    recalled = jnp.einsum("BNKE,BNKU->BKEU", k_BNKE, _divide(value, weight[..., None]))
  return Update(written, recalled, k_BNKE.sum(1))


def commit(memory: MemoryState, update: Update) -> MemoryState:
  """The memory after a segment is closed."""
  M_BKEU = memory.M_BKEU + update.written_BKEU
  if update.recalled_BKEU is not None:
    M_BKEU -= _damping(update.keys_BKE, memory.z_BKE)[..., None, None] * update.recalled_BKEU
  return MemoryState(M_BKEU, memory.z_BKE + update.keys_BKE)


def prefix(
  k_BSNKE: Float[Array, "B S N K E"],
  v_BSNKU: Float[Array, "B S N K U"],
  memory: MemoryState,
  reset_BS: Bool[Array, "B S"],
  mask_BSN: Bool[Array, "B S N"] | None,
  rule: str,
) -> tuple[MemoryState, MemoryState]:
  """The memory before each of S segments, and after the last: every product is batched over S.

  Only the recurrences over `z` and over `M` are sequential, and they touch nothing but states.

  Returns:
    The memory that each segment reads, with an axis S after B; and the memory after them all.
  """
  k_BSNKE = jax.vmap(_keys, 1, 1)(k_BSNKE, mask_BSN)
  written_BSKEU = jnp.einsum("BSNKE,BSNKU->BSKEU", k_BSNKE, v_BSNKU.astype(jnp.float32))
  keys_BSKE = k_BSNKE.sum(2)

  def over_segments(step, start, *xs):
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (reset_BS, *xs))

    def body(state, x):
      state = where_lane(x[0], 0, state)
      return step(state, *x[1:]), state

    last, before = jax.lax.scan(body, start, xs)
    return jnp.moveaxis(before, 0, 1), last

  z_BSKE, z_BKE = over_segments(jnp.add, memory.z_BKE, keys_BSKE)
  if rule == "linear":
    M_BSKEU, M_BKEU = over_segments(jnp.add, memory.M_BKEU, written_BSKEU)
  else:
    weight_BSNK = jnp.einsum("BSNKE,BSKE->BSNK", k_BSNKE, z_BSKE)
    scaled_BSNKE = _divide(k_BSNKE, weight_BSNK[..., None])
    P_BSKEI = jnp.einsum("BSNKE,BSNKI->BSKEI", k_BSNKE, scaled_BSNKE)
    P_BSKEI *= _damping(keys_BSKE, z_BSKE)[..., None, None]

    def step(M_BKEU, P_BKEI, written_BKEU):
      recalled = jnp.einsum("BKEI,BKIU->BKEU", P_BKEI, M_BKEU, precision="highest")
      return M_BKEU + written_BKEU - recalled

    M_BSKEU, M_BKEU = over_segments(step, memory.M_BKEU, P_BSKEI, written_BSKEU)
  return MemoryState(M_BSKEU, z_BSKE), MemoryState(M_BKEU, z_BKE)


def _keys(k_BNKE: Array, mask_BN: Array | None) -> Array:
  k_BNKE = sigma(k_BNKE)
  return k_BNKE if mask_BN is None else jnp.where(mask_BN[..., None, None], k_BNKE, 0.0)


def _divide(value: Array, weight: Array) -> Array:
  # The double `where` keeps the gradient finite where the weight is 0. No epsilon is needed: the
  # weights are sums of positive terms, so the quotient is a weighted mean however small they are.
  safe = jnp.where(weight > 0, weight, 1.0)
  return jnp.where(weight > 0, value / safe, 0.0)


def _damping(keys: Array, z: Array) -> Array:
  # I - P has eigenvalues down to 1 - rho(P), and by Collatz and Wielandt rho(P) lies between the
  # least and the greatest of keys/z. Segments of equal length have a ratio of at most about 1 and
  # are never damped; after a much shorter first one, recall is scaled until the ratio is the bound.
  growth = _divide(keys.sum(-1), z.sum(-1))
  return jnp.minimum(1.0, DELTA_GROWTH / jnp.maximum(growth, 1.0))
