"""Attention to the nearest of many stored keys (Memorizing Transformers, arXiv 2203.08913).

The search is exact: every key is compared, a block of queries at a time. What is stored is data:
gradients reach the queries, never the store.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops.attention import split_heads

SCORE_BYTES = 2**28  # of similarities that exist at the same time


def nearest_attention(
  q_BTHE: Float[Array, "B T H E"],
  k_BJKE: Float[Array, "B J K E"],
  v_BJKU: Float[Array, "B J K U"],
  seen_BJ: Bool[Array, "B J"],
  *,
  top: int,
) -> Float[Array, "B T H U"]:
  """Softmax attention of every query to the `top` stored keys with the highest scores.

  Args:
    q_BTHE: queries; head h searches the keys of key/value head h // G.
    k_BJKE, v_BJKU: the store: J keys and values a lane.
    seen_BJ: False where there is nothing, or another document's. A lane that sees nothing gets 0.
    top: how many; all that are seen, where they are fewer.
  """
  B, T, H, E = q_BTHE.shape
  J, K = k_BJKE.shape[1:3]
  top = min(top, J)
  k_BJKE, v_BJKU = jax.lax.stop_gradient((k_BJKE, v_BJKU))
  scale = E**-0.5

  @jax.checkpoint
  def rows(q_BTKGE):
    similar_BKGTJ = jnp.einsum(
      "BTKGE,BJKE->BKGTJ", q_BTKGE, k_BJKE, preferred_element_type=jnp.float32
    )
    similar_BKGTJ = jnp.where(seen_BJ[:, None, None, None], similar_BKGTJ, -jnp.inf)
    best_BKGTY, index_BKGTY = jax.lax.top_k(jax.lax.stop_gradient(similar_BKGTJ), top)
    found_BKGTY = best_BKGTY > -jnp.inf
    take = jax.vmap(jax.vmap(lambda x_JE, index: x_JE[index], (1, 0)))  # by lane, by head
    near_BKGTYE, value_BKGTYU = take(k_BJKE, index_BKGTY), take(v_BJKU, index_BKGTY)
    score_BKGTY = scale * jnp.einsum(
      "BTKGE,BKGTYE->BKGTY", q_BTKGE, near_BKGTYE, preferred_element_type=jnp.float32
    )
    score_BKGTY = jnp.where(found_BKGTY, score_BKGTY, -1e30)
    weight_BKGTY = jnp.where(found_BKGTY, jax.nn.softmax(score_BKGTY, axis=-1), 0.0)
    return jnp.einsum("BKGTY,BKGTYU->BTKGU", weight_BKGTY.astype(v_BJKU.dtype), value_BKGTYU)

  q_BTKGE = split_heads(q_BTHE, K)
  size = max(1, min(T, SCORE_BYTES // (4 * B * H * J)))
  blocks = -(-T // size)
  if blocks == 1:
    out_BTKGU = rows(q_BTKGE)
  else:
    padded = jnp.pad(q_BTKGE, ((0, 0), (0, blocks * size - T), (0, 0), (0, 0), (0, 0)))
    parts = jnp.moveaxis(padded.reshape(B, blocks, size, *q_BTKGE.shape[2:]), 1, 0)
    out = jnp.moveaxis(jax.lax.map(rows, parts), 0, 1)
    out_BTKGU = out.reshape(B, blocks * size, *out.shape[3:])[:, :T]
  return out_BTKGU.reshape(B, T, H, -1)
