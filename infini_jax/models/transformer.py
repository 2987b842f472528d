"""A decoder like Llama's, as a function over segments: `(state, tokens) -> (state, hidden)`.

Parameters are a nested dict of arrays whose names end in their dimensions. The layers are stacked
in front (L) and run by one scan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jaxtyping import Array, Bool, Float, Int

from infini_jax.config import ModelConfig
from infini_jax.models.lora import Adapter
from infini_jax.models.mixers import MIXERS
from infini_jax.models.mixers.base import Chunk, Tokens
from infini_jax.ops.attention import capped
from infini_jax.parallel import lookup, product

REMAT = {
  "none": None,  # keep everything
  "dots": checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the weight products
  "full": checkpoint_policies.nothing_saveable,  # keep only a layer's input
  "auto": checkpoint_policies.nothing_saveable,  # `plan.remat` chooses before a training
  "offload": checkpoint_policies.save_and_offload_only_these_names(  # keep it in the host's memory
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["layer_input"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


class RMSNorm(nnx.Module):
  """Root-mean-square normalization with a learned scale, in float32."""

  def __init__(self, size: int, config: ModelConfig):
    self.epsilon, self.plus_one = config.family.norm_eps, config.family.norm_plus_one
    start = jnp.zeros if config.family.norm_plus_one else jnp.ones
    self.scale_E = nnx.Param(start((size,), config.run.param_dtype))

  def __call__(self, x):
    """Normalizes the last dimension."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
    scale = self.scale_E[...].astype(jnp.float32)
    scale = 1 + scale if self.plus_one else scale
    return (x32 * scale.reshape(*(1,) * (x.ndim - 1), -1)).astype(x.dtype)


class Attention(nnx.Module):
  """Projections around a mixer."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c, D, E = config, config.width, config.head_dim
    self.config = c
    self.w_q_DHE = matrix(rngs, (D, c.heads, E), D, c)
    self.w_k_DKE = matrix(rngs, (D, c.kv_heads, E), D, c)
    self.w_v_DKE = matrix(rngs, (D, c.kv_heads, E), D, c)
    self.w_o_HED = matrix(rngs, (c.heads, E, D), c.heads * E * 2 * c.layers, c)
    if c.family.attention_bias:
      self.b_q_HE = nnx.Param(jnp.zeros((c.heads, E), c.run.param_dtype))
      self.b_k_KE = nnx.Param(jnp.zeros((c.kv_heads, E), c.run.param_dtype))
      self.b_v_KE = nnx.Param(jnp.zeros((c.kv_heads, E), c.run.param_dtype))
    if c.family.qk_norm:
      self.q_norm, self.k_norm = RMSNorm(E, c), RMSNorm(E, c)
    if c.adapters.rank:
      into, heads, kv_heads = {"D": D}, {"H": c.heads, "E": E}, {"K": c.kv_heads, "E": E}
      self.lora_q = Adapter(c, rngs, into, heads)
      self.lora_k, self.lora_v = Adapter(c, rngs, into, kv_heads), Adapter(c, rngs, into, kv_heads)
      self.lora_o = Adapter(c, rngs, heads, into)
    if not c.pattern:  # else `patterned` has the mixers, for layers differ in them alone
      self.mixer = MIXERS[c.mixer](c, rngs)

  def __call__(self, x_BTD, state, chunk):
    """The state goes in and comes out: of whole segments, or of the open one (`chunk.extends`)."""
    q_BTHE = product("BTD,DHE->BTHE", x_BTD, self.w_q_DHE[...])
    q_BTHE = q_BTHE + self.lora_q(x_BTD) if self.config.adapters.rank else q_BTHE
    q_BTHE = shifted(q_BTHE, self.b_q_HE[...]) if self.config.family.attention_bias else q_BTHE
    q_BTHE = self.q_norm(q_BTHE) if self.config.family.qk_norm else q_BTHE
    k_BTKE, v_BTKE = self._keys_values(x_BTD)
    tokens = Tokens(q_BTHE, k_BTKE, v_BTKE, x_BTD, self._keys_values)
    with jax.named_scope(self.config.mixer):
      call = self.mixer.extend if chunk.extends else self.mixer
      out_BTHE, state = call(tokens, chunk, state)
    out_BTD = product("BTHE,HED->BTD", out_BTHE, self.w_o_HED[...])
    return out_BTD + self.lora_o(out_BTHE) if self.config.adapters.rank else out_BTD, state

  def _keys_values(self, x_BTD, *, frozen: bool = False):
    """Keys and values of hidden states; `frozen`: without gradient to their weights."""
    keep = jax.lax.stop_gradient if frozen else lambda weight: weight
    weights = keep((self.w_k_DKE[...], self.w_v_DKE[...]))
    k_BTKE, v_BTKE = (product("BTD,DKE->BTKE", x_BTD, w) for w in weights)
    if self.config.adapters.rank:
      k_BTKE = k_BTKE + self.lora_k(x_BTD, keep)
      v_BTKE = v_BTKE + self.lora_v(x_BTD, keep)
    if self.config.family.attention_bias:
      b_k_KE, b_v_KE = keep((self.b_k_KE[...], self.b_v_KE[...]))
      k_BTKE, v_BTKE = shifted(k_BTKE, b_k_KE), shifted(v_BTKE, b_v_KE)
    return (self.k_norm(k_BTKE) if self.config.family.qk_norm else k_BTKE), v_BTKE


class FeedForward(nnx.Module):
  """SwiGLU or GEGLU (Shazeer, arXiv 2002.05202), or GELU; GELU by its tanh form."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c, D, F = config, config.width, config.ffn
    self.gated, self.activate = (
      c.gated_ffn,
      jax.nn.silu if c.activation == "swiglu" else jax.nn.gelu,
    )
    self.w_up_DF = matrix(rngs, (D, F), D, c)
    if self.gated:
      self.w_gate_DF = matrix(rngs, (D, F), D, c)
    self.w_down_FD = matrix(rngs, (F, D), F * 2 * c.layers, c)

  def __call__(self, x_BTD):
    """Token by token."""
    up_BTF = product("BTD,DF->BTF", x_BTD, self.w_up_DF[...])
    if self.gated:
      gate_BTF = product("BTD,DF->BTF", x_BTD, self.w_gate_DF[...])
      up_BTF = up_BTF * self.activate(gate_BTF)
    else:
      up_BTF = self.activate(up_BTF)
    return product("BTF,FD->BTD", up_BTF, self.w_down_FD[...])


class Block(nnx.Module):
  """Attention and feed-forward, each behind a norm (or between two) and around a residual."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.width, config)
    self.attention = Attention(config, rngs)
    self.ffn_norm = RMSNorm(config.width, config)
    self.ffn = FeedForward(config, rngs)
    self.post_norms = config.family.post_norms
    if config.family.post_norms:
      self.attention_post_norm = RMSNorm(config.width, config)
      self.ffn_post_norm = RMSNorm(config.width, config)

  def __call__(self, x_BTD, state, chunk):
    """One layer; its state goes in and comes out."""
    out_BTD, state = self.attention(self.attention_norm(x_BTD), state, chunk)
    x_BTD = x_BTD + (self.attention_post_norm(out_BTD) if self.post_norms else out_BTD)
    with jax.named_scope("ffn"):
      out_BTD = self.ffn(self.ffn_norm(x_BTD))
      return x_BTD + (self.ffn_post_norm(out_BTD) if self.post_norms else out_BTD), state


class Transformer(nnx.Module):
  """Embeddings, L blocks, a head."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    self.config = c
    self.embed_VD = matrix(rngs, (c.vocab_size, c.width), c.init_width, c)
    stack = nnx.vmap(lambda r: Block(c, r), in_axes=0, out_axes=0)
    self.blocks = stack(rngs.split(c.layers))
    self.final_norm = RMSNorm(c.width, c)
    if not c.tied_embeddings:
      self.head_VD = matrix(rngs, (c.vocab_size, c.width), c.init_width, c)

  def state(self, lanes: int) -> Any:
    """The state before anything was read: the mixer's, once per layer (L in front).

    Where layers differ, a tuple: one such state for each of the mixer's groups of layers.
    """
    mixer = self._mixer()

    def stacked(first, after):
      copies = lambda x: jnp.stack([x] * (after - first))
      return jax.tree.map(copies, mixer.state(lanes, first))

    return self._joined([stacked(*group) for group in mixer.groups()])

  def __call__(
    self,
    tokens_BT: Int[Array, "B T"],
    state: Any,
    *,
    reset_BS: Bool[Array, "B S"] | None = None,
    mask_BT: Bool[Array, "B T"] | None = None,
    times_BT: Float[Array, "B T"] | None = None,
    cut_L: Bool[Array, " L"] | None = None,
    empty_L: Bool[Array, " L"] | None = None,
    state_only: bool = False,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Reads a chunk of whole segments.

    Args:
      tokens_BT: T = S*N tokens of each lane (only the last call of a document may end short).
      state: from `state` or an earlier call.
      reset_BS: True where a segment starts a new document.
      mask_BT: False for padding.
      times_BT: how many times the memory counts each token.
      cut_L: True for the layers that read nothing of their state.
      empty_L: True for the layers that start every segment with an empty state.
      state_only: the hidden states are not used. The last layer then computes what its state needs.

    Returns:
      The normalised hidden states, to be used with `head`, and the state after the chunk.
    """
    if empty_L is not None and reset_BS is None:
      B, T = tokens_BT.shape
      reset_BS = jnp.zeros((B, -(-T // self.config.segment_length)), bool)
    chunk = Chunk(reset_BS, mask_BT, times_BT, cut_L, empty=empty_L)
    policy, apart = REMAT[self.config.run.remat], state_only and self._is_one_scan()
    x_BTD = self.embed(tokens_BT)
    hidden_BTD, state = self._layers(x_BTD, state, chunk, policy, last_apart=apart)
    return self.for_head(hidden_BTD), state

  def open(self, state: Any, lanes: int) -> Any:
    """From the state after whole segments to that of an open one, for `extend`."""
    mixer, dtype = self._mixer(), jnp.dtype(self.config.run.compute_dtype)
    one = lambda state: mixer.open(state, lanes, dtype)
    parts = [
      jax.vmap(one, axis_size=after - first)(part)
      for (first, after), part in zip(mixer.groups(), self._parts(state), strict=True)
    ]
    return self._joined(parts)

  def close(self, stream: Any) -> Any:
    """The reverse of `open`, when no lane has a token in its open segment."""
    return self._joined([self._mixer().close(part) for part in self._parts(stream)])

  def apart(self, stream: Any) -> list[Any]:
    """The stream of each layer, in the form that `extend` takes with `layers`."""
    runs = zip(self._mixer().groups(), self._parts(stream), strict=True)
    one = lambda part, i: jax.tree.map(lambda x: x[i], part)
    return [one(part, i) for (first, after), part in runs for i in range(after - first)]

  def together(self, streams: list[Any]) -> Any:
    """The reverse of `apart`."""
    stack = lambda *layers: jnp.stack(layers)
    groups = self._mixer().groups()
    return self._joined([jax.tree.map(stack, *streams[slice(*group)]) for group in groups])

  def extend(
    self,
    tokens_BT: Int[Array, "B T"],
    stream: Any,
    mask_BT: Bool[Array, "B T"],
    layers: list[Any] | None = None,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Reads T tokens more of each lane's open segment; `mask_BT` comes first in each row.

    No lane may be led past the end of its segment by one call. One token always fits.

    Args:
      tokens_BT: the tokens.
      stream: from `open` or an earlier call.
      mask_BT: False for padding.
      layers: the parameters of each layer by itself, to be used instead of the stacked ones: it is
        quicker where slicing these copies them. The stream is then a list too: see `apart`.
    """
    chunk = Chunk(mask_BT=mask_BT, extends=True)
    hidden_BTD, stream = self._layers(self.embed(tokens_BT), stream, chunk, None, layers=layers)
    return self.for_head(hidden_BTD), stream

  def for_head(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What `head` is multiplied with: logits have the factor `width_ratio`."""
    ratio = self.config.width_ratio
    return hidden_BTD if ratio == 1 else hidden_BTD * ratio

  def head(self) -> Float[Array, "V D"]:
    """The output embedding as stored."""
    return self.embed_VD[...] if self.config.tied_embeddings else self.head_VD[...]

  def logits(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Float32 logits of a few positions; for many, see `ops.loss.cross_entropy`."""
    float32 = {"preferred_element_type": jnp.float32}
    logits_BTV = product("BTD,VD->BTV", hidden_BTD, self.head(), **float32)
    return capped(logits_BTV, self.config.family.logit_softcap)

  def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """What the first layer gets, in the compute type."""
    x_BTD = lookup(self.embed_VD[...], tokens_BT, self.config.run.compute_dtype)
    return x_BTD if self.config.family.embed_scale == 1 else x_BTD * self.config.family.embed_scale

  def _mixer(self):
    return MIXERS[self.config.mixer](self.config, nnx.Rngs(0))

  def _is_one_scan(self):
    return len(self._mixer().groups()) == 1

  def _layers(self, x_BTD, state, chunk, policy, layers=None, last_apart=False):
    """All layers. `chunk.cut` and `chunk.empty` have one entry for each layer."""
    graph, stacked = nnx.split(self.blocks)
    layer, flags = one_layer(graph, chunk, policy), self._flags(chunk)
    if layers is not None:
      after = []
      for i, (params, own) in enumerate(zip(layers, state, strict=True)):
        x_BTD, own = layer(x_BTD, (params, own, jax.tree.map(lambda x: x[i], flags)))  # noqa: B023
        after.append(own)
      return self.final_norm(x_BTD), after
    groups, parts = self._mixer().groups(), []
    if last_apart:
      x_BTD, state = scan_last_apart(layer, x_BTD, (stacked, state, flags))
      return self.final_norm(x_BTD), state
    for (first, after), part in zip(groups, self._parts(state), strict=True):
      xs = (stacked, flags)
      if len(groups) > 1:
        xs = jax.tree.map(lambda x: x[first:after], xs)  # noqa: B023
      x_BTD, part = jax.lax.scan(layer, x_BTD, (xs[0], part, xs[1]))
      parts.append(part)
    return self.final_norm(x_BTD), self._joined(parts)

  def _flags(self, chunk):
    """What differs between layers, each (L,) or None: `Chunk.of_layer`."""
    return chunk.cut, self._windowed(), chunk.empty

  def _windowed(self) -> Bool[Array, " L"] | None:
    """Which layers have the window, and positions that the others may lack."""
    c = self.config
    return (
      (jnp.arange(c.layers) + 1) % c.family.global_every != 0 if c.family.global_every else None
    )

  def _parts(self, state):
    """A state by the mixer's groups of layers."""
    return state if len(self._mixer().groups()) > 1 else (state,)

  @staticmethod
  def _joined(parts):
    return tuple(parts) if len(parts) > 1 else parts[0]


def one_layer(graph: Any, chunk: Chunk, policy: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
  """The body of a scan over layers.

  Args:
    graph: of a `Block`.
    chunk: how the tokens lie in their documents.
    policy: what is kept for the gradient; None: everything.
  """

  def layer(x_BTD, xs):
    params, state, flags = xs
    x_BTD = checkpoint_name(x_BTD, "layer_input")
    return nnx.merge(graph, params)(x_BTD, state, chunk.of_layer(flags))

  return layer if policy is None else jax.checkpoint(layer, policy=policy, prevent_cse=False)


def scan_last_apart(body: Callable[[Any, Any], Any], carry: Any, xs: Any) -> tuple[Any, Any]:
  """`jax.lax.scan` whose last round is a program of its own, for use without a gradient.

  A loop of one round is none: XLA leaves out of it what nothing depends on. Rounds are found by
  their number, because XLA copies an array that is divided before a loop.
  """
  one = lambda carry, i: body(carry, jax.tree.map(lambda x: x[i], xs))
  rounds = len(jax.tree.leaves(xs)[0])
  carry, first = jax.lax.scan(one, carry, jnp.arange(rounds - 1))
  carry, last = jax.lax.scan(one, carry, jnp.arange(rounds - 1, rounds))
  return carry, jax.tree.map(lambda *x: jnp.concatenate(x), first, last)


def shifted(x_BTHE: Float[Array, "B T H E"], b_HE: Float[Array, "H E"]) -> Array:
  """A bias added, in x's type."""
  return x_BTHE + b_HE[None, None].astype(x_BTHE.dtype)


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, config: ModelConfig) -> nnx.Param:
  """Normal, with variance 1/fan_in, cut at two standard deviations."""
  noise = jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)
  return nnx.Param((noise * (fan_in**-0.5 / 0.8796)).astype(config.run.param_dtype))
