"""Infini-attention as a loop over segments, head by head: slow, and obviously right.

It is traced in float64, so that its gradients are a reference too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.ops.memory import DELTA_GROWTH


def sigma(x):
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def rotate(x_TE, position_T, theta):
  half = x_TE.shape[1] // 2
  angle_TE = position_T[:, None] / theta ** (np.arange(half)[None] / half)
  a, b = x_TE[:, :half], x_TE[:, half:]
  cos, sin = np.cos(angle_TE), np.sin(angle_TE)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], 1)


def one_head(
  q, k, v, beta, M, z, reset_S, mask_T,
  *, segment_length, rule, rope_theta, scale_first_segment,
):  # fmt: skip
  """One lane, one query head and its key/value head: q (T,E), k (T,E), v (T,U), M (E,U), z (E)."""
  T, E = q.shape
  outs = []
  memory, norm, written = M, z, jnp.array(True)
  for s, start in enumerate(range(0, T, segment_length)):
    part = slice(start, min(start + segment_length, T))
    mask, query, key, value = mask_T[part], q[part], k[part], v[part]
    memory, norm = jnp.where(reset_S[s], 0.0, memory), jnp.where(reset_S[s], 0.0, norm)
    written = written & ~reset_S[s]
    norm = jnp.where(written, norm, 1.0)  # an empty memory is never read: see `written` below
    turned = (query, key)
    if rope_theta is not None:
      place = np.arange(len(query))
      turned = (rotate(query, place, rope_theta), rotate(key, place, rope_theta))
    seen = np.tri(len(query), dtype=bool) & mask[None, :]
    score = jnp.where(seen, turned[0] @ turned[1].T / E**0.5, -jnp.inf)
    local = jax.nn.softmax(score, axis=-1) @ value
    gate = 1 / (1 + jnp.exp(-beta))
    recalled = sigma(query) @ memory / (sigma(query) @ norm)[:, None]
    alone = (1 - gate) * local if scale_first_segment else local
    outs.append(jnp.where(written, gate * recalled + (1 - gate) * local, alone))
    added, new = jnp.where(mask[:, None], sigma(key), 0.0), value
    if rule == "delta":
      # Recall is damped when a segment adds much more than the memory holds.
      growth = added.sum() / norm.sum()
      damping = jnp.minimum(1.0, DELTA_GROWTH / jnp.maximum(growth, 1.0))
      recalled = (sigma(key) @ memory) / (sigma(key) @ norm)[:, None]
      new = value - jnp.where(written, damping * recalled, 0.0)
    memory, norm = memory + added.T @ new, jnp.where(written, norm, 0.0) + added.sum(0)
    written = jnp.array(True)
  return jnp.concatenate(outs), memory, norm


def infini_attention(q, k, v, beta, M, z, *, reset, mask, **options):
  """Arguments as the real one's; reset and mask are arrays, M and z the memory to start from.

  Every segment has a token that is no padding.
  """
  B, T, H, E = q.shape
  K = k.shape[2]
  head = lambda *arrays: one_head(*arrays, **options)
  group = jax.vmap(head, (1, None, None, 0, None, None, None, None), (1, None, None))
  heads = jax.vmap(group, (1, 1, 1, 0, 0, 0, None, None), (1, 0, 0))
  lanes = jax.vmap(heads, (0, 0, 0, None, 0, 0, 0, 0))
  split = q.reshape(B, T, K, H // K, E), beta.reshape(K, H // K)
  out, M, z = lanes(split[0], k, v, split[1], M, z, jnp.asarray(reset), jnp.asarray(mask))
  # A head's memory is the same for all query heads of the group.
  return out.reshape(B, T, H, -1), M, z
