"""Infini-attention for transformers: a decoder like Llama's with a compressive memory.

The text is read in segments of N tokens. In a segment, a token attends to those before it. All
earlier segments are in the memory of each layer (`infini_memory.py`): a matrix M and a normaliser z
for each key/value head, of constant size. `infini_state.py` reads saved states.

Names of tensors end in their dimensions: B lanes (texts of a batch), T tokens, C cached keys of the
open segment, D width, H query heads, K key/value heads, E size of a head, U size of a value (= E).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .infini_memory import InfiniCache, Memory
from .infini_state import read_state

# How this version of transformers calls a cache; `forward` and `generate` take both names here.
CACHE = {"cache", "past_key_values"} & CausalLMOutputWithPast.__dataclass_fields__.keys()


class InfiniConfig(PretrainedConfig):
  """The sizes, as in any `config.json`, and these fields, as in the config of infini_jax:

  Attributes:
    segment_length: N, in tokens.
    activation: of the feed-forward: swiglu, geglu or gelu.
    family: how the model differs from Llama: rope, norms, biases, scales and caps.
    mixers: the memory system of each layer: a key of `systems`.
    systems: the settings of each memory system; None: attention in the segment alone.
    parameters: the checksum of the run's parameters, which the header of a state has too.
    tokenizer: the fingerprint of the run's tokenizer, likewise.
  """

  model_type = "infini"

  def __init__(
    self,
    segment_length=256,
    activation="swiglu",
    family=None,
    mixers=(),
    systems=None,
    parameters="",
    tokenizer="",
    **sizes,
  ):
    self.segment_length, self.activation = segment_length, activation
    self.family, self.mixers, self.systems = dict(family or {}), list(mixers), dict(systems or {})
    self.parameters, self.tokenizer = parameters, tokenizer
    super().__init__(**sizes)


class Norm(nn.Module):
  """Root-mean-square normalization with a learned scale, in float32."""

  def __init__(self, size, family):
    super().__init__()
    self.epsilon, self.plus_one = family["norm_eps"], family["norm_plus_one"]
    self.weight = nn.Parameter(torch.ones(size))

  def forward(self, x):
    """Normalizes the last dimension."""
    scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.epsilon)
    return (scaled * (self.weight.float() + float(self.plus_one))).to(x.dtype)


class Attention(nn.Module):
  """Attention in the open segment, and the memory."""

  def __init__(self, config, own):
    super().__init__()
    D, H, self.E = config.hidden_size, config.num_attention_heads, config.head_dim
    KE, family, bias = config.num_key_value_heads * self.E, config.family, {}
    bias = {"bias": family["attention_bias"]}
    self.q_proj, self.k_proj = nn.Linear(D, H * self.E, **bias), nn.Linear(D, KE, **bias)
    self.v_proj, self.o_proj = nn.Linear(D, KE, **bias), nn.Linear(H * self.E, D, bias=False)
    if family["qk_norm"]:
      self.q_norm, self.k_norm = Norm(self.E, family), Norm(self.E, family)
    self.scale = family["query_scale"] or self.E**-0.5
    self.softcap, self.qk_norm = family["attention_softcap"], family["qk_norm"]
    self.memory = None if own is None else Memory(config, own)

  def forward(self, x_BTD, turn, seen_BTC, real_BT, state, full_B):
    """One piece of a segment.

    Args:
      x_BTD: the hidden states.
      turn: rotates queries and keys (B, heads, T, E).
      seen_BTC: which columns, those of the piece at the end, each token sees.
      real_BT, full_B: as of `Memory`.
      state: the `Layer` before the piece.

    Returns:
      The output (B, T, D), and the `Layer` after the piece, with all columns.
    """
    heads = lambda x: x.unflatten(-1, (-1, self.E)).transpose(1, 2)
    q, k, v = heads(self.q_proj(x_BTD)), heads(self.k_proj(x_BTD)), heads(self.v_proj(x_BTD))
    if self.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    k_BKCE = torch.cat([state.k_BKCE, turn(k)], 2)
    v_BKCU = torch.cat([state.v_BKCU, v], 2)
    out_BHTU = self._local(turn(q), k_BKCE, v_BKCU, seen_BTC)
    state = state._replace(k_BKCE=k_BKCE, v_BKCU=v_BKCU)
    if self.memory is not None:
      out_BHTU, state = self.memory(out_BHTU, q, k, v, x_BTD, real_BT, state, full_B)
    return self.o_proj(out_BHTU.transpose(1, 2).flatten(2)), state

  def _local(self, q_BHTE, k_BKCE, v_BKCU, seen_BTC):
    groups = q_BHTE.shape[1] // k_BKCE.shape[1]
    k, v = k_BKCE.repeat_interleave(groups, 1), v_BKCU.repeat_interleave(groups, 1)
    mask = seen_BTC[:, None]
    if not self.softcap:
      return F.scaled_dot_product_attention(q_BHTE, k, v, attn_mask=mask, scale=self.scale)
    score = q_BHTE.float() @ k.float().transpose(2, 3) * self.scale
    score = self.softcap * torch.tanh(score / self.softcap)
    return score.masked_fill(~mask, -1e30).softmax(-1).to(v.dtype) @ v


class FeedForward(nn.Module):
  """SwiGLU, GEGLU or GELU; GELU by its tanh form."""

  def __init__(self, config):
    super().__init__()
    D, width, self.kind = config.hidden_size, config.intermediate_size, config.activation
    self.up_proj, self.down_proj = nn.Linear(D, width, bias=False), nn.Linear(width, D, bias=False)
    if self.kind != "gelu":
      self.gate_proj = nn.Linear(D, width, bias=False)

  def forward(self, x_BTD):
    """Token by token."""
    if self.kind == "gelu":
      return self.down_proj(F.gelu(self.up_proj(x_BTD), approximate="tanh"))
    gate = self.gate_proj(x_BTD)
    gate = F.silu(gate) if self.kind == "swiglu" else F.gelu(gate, approximate="tanh")
    return self.down_proj(self.up_proj(x_BTD) * gate)


class Block(nn.Module):
  """Attention and feed-forward, each behind a norm (or between two) and around a residual."""

  def __init__(self, config, own):
    super().__init__()
    norm = lambda: Norm(config.hidden_size, config.family)
    self.input_layernorm, self.self_attn, self.mlp = (
      norm(),
      Attention(config, own),
      FeedForward(config),
    )
    self.post_attention_layernorm, self.post_norms = norm(), config.family["post_norms"]
    if self.post_norms:
      self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

  def forward(self, x_BTD, *args):
    """One layer; arguments and results as of `Attention`."""
    out_BTD, state = self.self_attn(self.input_layernorm(x_BTD), *args)
    if not self.post_norms:
      x_BTD = x_BTD + out_BTD
      return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), state
    x_BTD = x_BTD + self.post_attention_layernorm(out_BTD)
    out_BTD = self.mlp(self.pre_feedforward_layernorm(x_BTD))
    return x_BTD + self.post_feedforward_layernorm(out_BTD), state


def rope_of(family, layer):
  """The base of a layer's rotary positions, and their scaling; a base of 0: no positions."""
  every, near = family["global_every"], family["window_theta"]
  windowed = not every or (layer + 1) % every != 0
  if windowed and near:
    return near, ()
  if not windowed and family["global_nope"]:
    return 0.0, ()
  return family["rope_theta"], tuple(family["rope_scaling"])


def turns(position_BT, size, theta, scaling):
  """Cosine and sine (B, 1, T, E/2) of the angle of each pair of a head, float32.

  Args:
    position_BT: the positions in the segment.
    size: E.
    theta, scaling: of `rope_of`. (factor,) divides all frequencies; (factor, low, high, original)
      is Llama 3.1's; (factor, low, high, original, magnitude) is YaRN's.
  """
  half, magnitude, device = size // 2, 1.0, position_BT.device
  pair = torch.arange(half, dtype=torch.float32, device=device)
  frequency = theta ** (-pair / half) if theta else torch.zeros_like(pair)
  if len(scaling) == 1:
    frequency = frequency / scaling[0]
  elif scaling:
    factor, low, high, original = scaling[:4]
    kept = ((original * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    if len(scaling) == 5:
      magnitude = scaling[4]
      at = lambda n: half * math.log(original / (n * 2 * math.pi)) / math.log(theta)
      first, last = max(math.floor(at(high)), 0), min(math.ceil(at(low)), size - 1)
      kept = 1 - ((pair - first) / ((last - first) or 1e-3)).clamp(0, 1)
    frequency = frequency * (kept + (1 - kept) / factor)
  angle = (position_BT.float()[..., None] * frequency)[:, None]
  return magnitude * angle.cos(), magnitude * angle.sin()


def rotated(x_BHTE, cos, sin):
  """Turns each head's pairs `(x[i], x[i + E/2])`, in the type of `x_BHTE`."""
  first, second = x_BHTE.float().chunk(2, -1)
  turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
  return turned.to(x_BHTE.dtype)


class InfiniModel(nn.Module):
  """Embeddings, layers, and the last norm."""

  def __init__(self, config):
    super().__init__()
    self.config = config
    self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
    self.layers = nn.ModuleList(Block(config, config.systems[name]) for name in config.mixers)
    self.norm = Norm(config.hidden_size, config.family)

  def forward(self, tokens_BT, real_BT, cache):
    """Reads tokens that no lane's segment ends before the last of; changes the cache.

    Returns:
      The normalized hidden states (B, T, D).
    """
    N, E, (B, T) = self.config.segment_length, self.config.head_dim, tokens_BT.shape
    device = tokens_BT.device
    counts_BT = torch.ones_like(tokens_BT) if real_BT is None else real_BT.long()
    position_BT = torch.tensor(cache.fill, device=device)[:, None] + counts_BT.cumsum(1) - 1
    added = [T] * B if real_BT is None else counts_BT.sum(1).tolist()
    cache.fill = [fill + more for fill, more in zip(cache.fill, added, strict=True)]
    full = [fill == N for fill in cache.fill]
    full_B = torch.tensor(full, device=device) if any(full) else None

    open_BC = torch.cat([cache.open_BC, counts_BT.bool()], 1)
    before = torch.ones(T, open_BC.shape[1], dtype=torch.bool, device=device)
    itself = before.triu(cache.open_BC.shape[1]) & before.tril(cache.open_BC.shape[1])
    before = before.tril(cache.open_BC.shape[1])
    seen_BTC = (open_BC[:, None] & before) | itself  # padding sees itself, so that all is finite
    x_BTD = self.embed_tokens(tokens_BT) * self.config.family["embed_scale"]
    ropes = [rope_of(self.config.family, i) for i in range(len(self.layers))]
    angles = {rope: turns(position_BT, E, *rope) for rope in set(ropes)}
    first = open_BC.shape[1]
    if not all(full):  # columns that are of no open segment are dropped
      if full_B is not None:
        open_BC = open_BC & ~full_B[:, None]
      kept = open_BC.any(0).nonzero()
      first = int(kept[0]) if len(kept) else first
    for i, block in enumerate(self.layers):
      turn = lambda x, rope=ropes[i]: rotated(x, *angles[rope])
      x_BTD, state = block(x_BTD, turn, seen_BTC, real_BT, cache.layers[i], full_B)
      kept = {"k_BKCE": state.k_BKCE[:, :, first:], "v_BKCU": state.v_BKCU[:, :, first:]}
      cache.layers[i] = state._replace(**kept)
    cache.open_BC = open_BC[:, first:]
    cache.fill = [0 if fill == N else fill for fill in cache.fill]
    return self.norm(x_BTD)


class InfiniForCausalLM(PreTrainedModel, GenerationMixin):
  """The language model. Tokens that are fed in pieces give the same as all at once."""

  config_class = InfiniConfig
  base_model_prefix = "model"
  _is_stateful = True  # a memory cannot go back to an earlier position in the text
  _keep_in_fp32_modules_strict = ["memory"]
  _supports_sdpa = True

  def __init__(self, config):
    super().__init__(config)
    self.model = InfiniModel(config)
    if not config.tie_word_embeddings:
      self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    self.post_init()

  def forward(
    self,
    input_ids,
    attention_mask=None,
    past_key_values=None,
    cache=None,
    labels=None,
    use_cache=True,
    logits_to_keep=0,
    return_dict=True,
  ):
    """Reads tokens after those of the cache, piece by piece.

    Args:
      input_ids: (B, T), of any length: the work space is that of one segment.
      attention_mask: (B, T or more), 0 for padding, at either side; its last T columns are used.
      past_key_values, cache: two names of the cache of an earlier call, which is changed in place.
      labels: (B, T); the loss is that of each token given those before it, -100 counts nothing.
      use_cache: False returns no cache.
      logits_to_keep: only the logits of so many last tokens; 0: all.
      return_dict: False returns a tuple.
    """
    V, keep = self.config.vocab_size, logits_to_keep if labels is None else 0
    cache = past_key_values if cache is None else cache
    hidden_BTD, cache = self._run(input_ids, attention_mask, cache, keep or input_ids.shape[1])
    head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
    logits = F.linear(hidden_BTD, head.weight).float()
    if cap := self.config.family["logit_softcap"]:
      logits = cap * torch.tanh(logits / cap)
    loss = None
    if labels is not None:
      loss = F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))
    kept = dict.fromkeys(CACHE if use_cache else (), cache)
    out = CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
    return out if return_dict is not False else out.to_tuple()

  @torch.no_grad()
  def read(self, input_ids, attention_mask=None, cache=None):
    """Reads a text of any length in constant memory, and returns the cache; as `forward`."""
    return self._run(input_ids, attention_mask, cache, 0)[1]

  def _run(self, input_ids, attention_mask, cache, keep):
    """The hidden states (B, keep, D) of the last tokens, and the cache."""
    B, T = input_ids.shape
    if not T:
      raise ValueError("input_ids holds no token; give at least one")
    if cache is None:
      cache = InfiniCache(self.config, B, input_ids.device, self.dtype)
    if len(cache.fill) != B:
      raise ValueError(f"a cache of {len(cache.fill)} texts with {B} texts; give as many")
    shape = (B, T) if attention_mask is None else tuple(attention_mask.shape)
    if len(shape) != 2 or shape[0] != B or shape[1] < T:
      raise ValueError(f"an attention_mask of shape {shape} with {B} texts of {T} tokens")
    real_BT = None
    if attention_mask is not None and not attention_mask[:, -T:].all():
      real_BT = attention_mask[:, -T:].bool()
    hidden, start = [], 0
    while start < T:
      stop = min(T, start + self.config.segment_length - max(cache.fill))
      real = None if real_BT is None else real_BT[:, start:stop]
      piece_BTD = self.model(input_ids[:, start:stop], real, cache)
      hidden.append(piece_BTD[:, max(0, T - keep - start) :])
      start = stop
    cache.seen, cache.last_B = cache.seen + T, input_ids[:, -1]
    return torch.cat(hidden, 1), cache

  @torch.no_grad()
  def load_state(self, path):
    """The state of a text that was read elsewhere, from a file that `Session.save` has written.

    Returns:
      The cache, and the last tokens of the text (B, tokens). The cache does not hold them yet:
      they are the beginning of the next `input_ids`.

    Raises:
      ValueError: the file is damaged, or a state of another model.
    """
    state = read_state(path, self.config.parameters, self.config.tokenizer)
    cache = InfiniCache.of_state(state, self.config, self.device, self.dtype)
    waiting = [
      torch.tensor(tokens, dtype=torch.long, device=self.device) for tokens in state.unread
    ]
    width = min(map(len, waiting))
    more = [tokens[: len(tokens) - width] for tokens in waiting]
    if longest := max(map(len, more)):  # of lanes that have more tokens than others
      padded = torch.stack([F.pad(x, (0, longest - len(x))) for x in more])
      mask = torch.stack([torch.arange(longest, device=self.device) < len(x) for x in more])
      self.read(padded, mask, cache)
    return cache.fork(), torch.stack([tokens[len(tokens) - width :] for tokens in waiting])

  def prepare_inputs_for_generation(
    self, input_ids, past_key_values=None, cache=None, attention_mask=None, **kwargs
  ):
    """The columns that the cache does not hold yet."""
    cache = past_key_values if cache is None else cache
    seen = 0 if cache is None else cache.seen
    if seen and (input_ids.shape[1] <= seen or (input_ids[:, seen - 1] != cache.last_B).any()):
      raise ValueError(
        f"the cache holds {seen} tokens that input_ids does not begin with; give the whole text, "
        f"or cache.fork() and what follows"
      )
    return {
      "input_ids": input_ids[:, seen:],
      "attention_mask": attention_mask,
      "cache": cache,
      "logits_to_keep": 1,
      "use_cache": True,
    }

  @classmethod
  def _supports_default_dynamic_cache(cls):
    return False  # `forward` makes an InfiniCache
