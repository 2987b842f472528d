"""Infini-attention as a plain loop over segments and heads: slow and simple.

It is traced in float64, so its gradients are a reference too.
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
  q, k, v, beta, M, z, reset_S, mask_T, write_T, own_q, own_k, own_v, decay_T,
  *, segment_length, rule, rope_theta, cut,
):  # fmt: skip
  """One lane, one query head and its key/value head: q (T,E), k (T,E), v (T,U), M (E,U), z (E).

  The memory is read with own_q and written with own_k and own_v. With decay_T, each segment
  multiplies it by sigmoid(mean of decay_T).
  """
  T, E = q.shape
  outs = []
  memory, norm, written = M, z, jnp.array(True)
  for s, start in enumerate(range(0, T, segment_length)):
    part = slice(start, min(start + segment_length, T))
    mask, query, key, value = mask_T[part], q[part], k[part], v[part]
    memory, norm = jnp.where(reset_S[s], 0.0, memory), jnp.where(reset_S[s], 0.0, norm)
    written = written & ~reset_S[s]
    norm = jnp.where(written, norm, 1.0)  # an empty memory is never read; see `written` below
    turned = (query, key)
    if rope_theta is not None:
      place = np.arange(len(query))
      turned = (rotate(query, place, rope_theta), rotate(key, place, rope_theta))
    seen = np.tri(len(query), dtype=bool) & mask[None, :]
    score = jnp.where(seen, turned[0] @ turned[1].T / E**0.5, -jnp.inf)
    local = jax.nn.softmax(score, axis=-1) @ value
    query, key, value = own_q[part], own_k[part], own_v[part]
    g = 1 / (1 + jnp.exp(-beta)) if rule.gate == "sigmoid" else jnp.clip(beta / 6 + 0.5, 0.0, 1.0)
    recalled = sigma(query) @ memory / (sigma(query) @ norm)[:, None]
    if rule.readout_norm:
      recalled = recalled / jnp.sqrt((recalled**2).mean(1) + 1e-6)[:, None]
    if cut:
      recalled = jnp.zeros_like(recalled)
    alone = (1 - g) * local if rule.scale_first_segment else local
    outs.append(jnp.where(written, g * recalled + (1 - g) * local, alone))

    decay = rule.decay
    if decay_T is not None:
      decay /= 1 + jnp.exp(-jnp.where(mask, decay_T[part], 0.0).sum() / mask.sum(dtype=float))
    phi = sigma(key)
    if rule.normalize_keys:
      phi = phi / phi.sum(1)[:, None]
    added, new = jnp.where(mask[:, None], phi, 0.0) * write_T[part, None], value
    if rule.name == "delta":
      # The recall is damped if a segment adds much more than the memory holds.
      growth = added.sum() / norm.sum()
      if rule.z_correction:
        growth = jax.lax.stop_gradient((added.sum(0) / norm).max())
      damping = jnp.minimum(1.0, DELTA_GROWTH / jnp.maximum(growth, 1.0))
      recalled = (phi @ memory) / (phi @ norm)[:, None]
      new = value - jnp.where(written, decay * damping * recalled, 0.0)
    new_keys = added
    if rule.z_correction:
      gamma = jnp.clip(1 - (phi @ norm) / (phi**2).sum(1), 0.0, 1.0)
      gamma = jnp.where(written, jax.lax.stop_gradient(gamma), 1.0)
      new_keys = gamma[:, None] * added
    memory = decay * memory + added.T @ new
    norm = decay * jnp.where(written, norm, 0.0) + new_keys.sum(0)
    written = jnp.array(True)
  return jnp.concatenate(outs), memory, norm


def infini_attention(q, k, v, beta, M, z, write=None, *own, decay=None, reset, mask, **options):
  """Arguments as in the package; reset and mask are arrays, M and z the memory at the start.

  `rule` is a `Rule`, `cut` True or False.

  Every segment has a real token that is written.
  """
  B, T, H, E = q.shape
  K = k.shape[2]
  head = lambda *arrays: one_head(*arrays, **options)
  write = jnp.ones((B, T, K)) if write is None else write
  own_q, own_k, own_v = own or (q, k, v)
  group = jax.vmap(head, (1, *[None] * 2, 0, *[None] * 5, 1, *[None] * 3), (1, None, None))
  heads = jax.vmap(group, (1, 1, 1, 0, 0, 0, None, None, *[1] * 5), (1, 0, 0))
  lanes = jax.vmap(heads, (0, 0, 0, None, *[0] * 9))
  grouped = lambda q: q.reshape(B, T, K, H // K, E)
  split = grouped(q), beta.reshape(K, H // K)
  flags = jnp.asarray(reset), jnp.asarray(mask)
  out, M, z = lanes(
    split[0], k, v, split[1], M, z, *flags, write, grouped(own_q), own_k, own_v, decay
  )
  # All query heads of a group have the same memory.
  return out.reshape(B, T, H, -1), M, z
