"""A decoder of the pretrained families in float64, one lane and one head at a time.

It is written from the models' papers. It shares with the package only the names of the parameters.
"""

import math

import numpy as np


def logits(params, tokens_T, c):
  """Logits (T, V) of one whole document."""
  x = params["embed_VD"][tokens_T] * c.family.embed_scale
  for i in range(c.layers):
    layer = _part(params["blocks"], i)
    post = layer if c.family.post_norms else {}
    heads = _attention(layer["attention"], _norm(x, layer["attention_norm"], c), i, c)
    x = x + _norm(heads, post.get("attention_post_norm"), c)
    out = _feed_forward(layer["ffn"], _norm(x, layer["ffn_norm"], c), c)
    x = x + _norm(out, post.get("ffn_post_norm"), c)
  head = params["embed_VD"] if c.tied_embeddings else params["head_VD"]
  return _cap(_norm(x, params["final_norm"], c) @ head.T, c.family.logit_softcap)


def loss(params, tokens_T, c):
  """The mean negative log-likelihood of all tokens but the first."""
  x = logits(params, tokens_T[:-1], c)
  log_z = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
  return (log_z - x[np.arange(len(x)), tokens_T[1:]]).mean()


def _attention(p, x, layer, c):
  T, E = len(x), c.head_dim
  is_global = c.family.global_every > 0 and (layer + 1) % c.family.global_every == 0
  windowed = c.family.window > 0 and not is_global
  magnitude = 1.0
  if is_global and c.family.global_nope:
    frequency = np.zeros(E // 2)
  elif windowed and c.family.window_theta:
    frequency = frequencies(E, c.family.window_theta, ())
  else:
    frequency = frequencies(E, c.family.rope_theta, c.family.rope_scaling)
    magnitude = c.family.rope_scaling[4] if len(c.family.rope_scaling) == 5 else 1.0
  out = np.zeros((T, c.width))
  for h in range(c.heads):
    kv = h // (c.heads // c.kv_heads)
    q, k, v = x @ p["w_q_DHE"][:, h], x @ p["w_k_DKE"][:, kv], x @ p["w_v_DKE"][:, kv]
    if c.family.attention_bias:
      q, k, v = q + p["b_q_HE"][h], k + p["b_k_KE"][kv], v + p["b_v_KE"][kv]
    if c.family.qk_norm:
      q, k = _norm(q, p["q_norm"], c), _norm(k, p["k_norm"], c)
    q, k = magnitude * _turned(q, frequency), magnitude * _turned(k, frequency)
    for t in range(T):
      first = max(0, t + 1 - c.family.window) if windowed else 0
      score = _cap(
        k[first : t + 1] @ q[t] * (c.family.query_scale or 1 / math.sqrt(E)),
        c.family.attention_softcap,
      )
      weight = np.exp(score - score.max())
      out[t] += (weight / weight.sum()) @ v[first : t + 1] @ p["w_o_HED"][h]
  return out


def _feed_forward(p, x, c):
  up = x @ p["w_up_DF"]
  if c.activation == "gelu":
    return _gelu(up) @ p["w_down_FD"]
  gate = x @ p["w_gate_DF"]
  gate = _gelu(gate) if c.activation == "geglu" else gate / (1 + np.exp(-gate))
  return (gate * up) @ p["w_down_FD"]


def _norm(x, p, c):
  """RMS norm. Without parameters, x is returned unchanged."""
  if p is None:
    return x
  scale = 1 + p["scale_E"] if c.family.norm_plus_one else p["scale_E"]
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.family.norm_eps) * scale


def _cap(x, cap):
  return cap * np.tanh(x / cap) if cap else x


def _gelu(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _turned(x, frequency):
  """Each pair as a complex number, rotated by its position."""
  half = x.shape[1] // 2
  turn = np.exp(1j * np.arange(len(x))[:, None] * frequency[None])
  pairs = (x[:, :half] + 1j * x[:, half:]) * turn
  return np.concatenate([pairs.real, pairs.imag], 1)


def frequencies(E, theta, scaling):
  if len(scaling) == 5:
    return np.array([_yarn(i, E, theta, *scaling[:4]) for i in range(E // 2)])
  return np.array([_scaled(theta ** (-2 * i / E), scaling) for i in range(E // 2)])


def _yarn(i, E, theta, factor, low, high, original):
  """As in the authors' code: a ramp between the pairs that rotate `high` and `low` times."""
  plain = theta ** (-2 * i / E)
  place = lambda turns: E * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
  first, last = max(math.floor(place(high)), 0), min(math.ceil(place(low)), E - 1)
  if i <= first:
    return plain
  if i >= last:
    return plain / factor
  ramp = (i - first) / (last - first)
  return plain / factor * ramp + plain * (1 - ramp)


def _scaled(frequency, scaling):
  """The angle of one pair between two positions; Llama 3's cases by wavelength."""
  if not scaling:
    return frequency
  if len(scaling) == 1:
    return frequency / scaling[0]
  factor, low, high, original = scaling
  wave = 2 * math.pi / frequency
  if wave < original / high:
    return frequency
  if wave > original / low:
    return frequency / factor
  share = (original / wave - low) / (high - low)
  return (1 - share) * frequency / factor + share * frequency


def _part(tree, i):
  return {k: _part(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}
