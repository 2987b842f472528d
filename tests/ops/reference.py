"""Infini-attention as loops over lanes, heads and segments: slow, and obviously right.

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


def infini_attention(
  q, k, v, beta, M, z, *, segment_length, rule, rope_theta, reset, mask, scale_first_segment=False
):
  """Arguments as the real one's; reset and mask are numpy, M and z the memory to start from."""
  B, T, H, E = q.shape
  K, U = k.shape[2], v.shape[3]
  out = jnp.zeros((B, T, H, U), q.dtype)
  Ms, zs = np.zeros((B, K), object), np.zeros((B, K), object)
  for b in range(B):
    for j in range(K):
      memory, norm, written = M[b, j], z[b, j], True
      for s, start in enumerate(range(0, T, segment_length)):
        if reset[b, s]:
          memory, norm, written = jnp.zeros_like(memory), jnp.zeros_like(norm), False
        tokens = np.array([t for t in range(start, min(start + segment_length, T)) if mask[b, t]])
        if not len(tokens):
          continue
        key, value = k[b, tokens, j], v[b, tokens, j]
        for h in range(j * (H // K), (j + 1) * (H // K)):
          query, place = q[b, tokens, h], tokens - start
          turned = (query, key)
          if rope_theta is not None:
            turned = (rotate(query, place, rope_theta), rotate(key, place, rope_theta))
          score = jnp.where(
            np.tri(len(tokens), dtype=bool), turned[0] @ turned[1].T / E**0.5, -jnp.inf
          )
          local = jax.nn.softmax(score, axis=-1) @ value
          gate = 1 / (1 + jnp.exp(-beta[h]))
          if written:
            recalled = sigma(query) @ memory / (sigma(query) @ norm)[:, None]
            local = gate * recalled + (1 - gate) * local
          elif scale_first_segment:
            local = (1 - gate) * local
          out = out.at[b, tokens, h].set(local)
        new = value
        if rule == "delta" and written:
          # Recall is damped when a segment adds much more than the memory holds.
          growth = sigma(key).sum() / norm.sum()
          damping = jnp.minimum(1.0, DELTA_GROWTH / jnp.maximum(growth, 1.0))
          new = value - damping * (sigma(key) @ memory) / (sigma(key) @ norm)[:, None]
        memory, norm, written = memory + sigma(key).T @ new, norm + sigma(key).sum(0), True
      Ms[b, j], zs[b, j] = memory, norm
  Ms = jnp.stack([jnp.stack(list(row)) for row in Ms])
  return out, Ms, jnp.stack([jnp.stack(list(row)) for row in zs])
