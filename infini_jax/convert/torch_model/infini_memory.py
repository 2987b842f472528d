"""The state of the model between tokens, and the mathematics of its memory.

    read     recalled = sigma(q) M / (sigma(q) z)                   0 where the memory is empty
    linear   M' = M + sigma(k)^T v                                  z' = z + sum_t sigma(k_t)
    delta    M' = M + sigma(k)^T (v - sigma(k) M / (sigma(k) z))    z' as above
    mix      out = g recalled + (1 - g) local,  g = sigmoid(beta)   local: attention in the segment

These are equations (7) to (10) of arXiv 2404.07143, with sigma(x) = elu(x) + 1 on un-rotated
queries and keys. `modeling_infini.py` has the letters of the dimensions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

DELTA_GROWTH = 2.0  # delta contracts while a segment adds at most so many times what z holds
READOUT_EPSILON = 1e-6  # added to the mean square of a read-out


class Update(NamedTuple):
  """What the open segment will add to the memory, as sums over its tokens; float32."""

  written_BKEU: torch.Tensor
  recalled_BKEU: torch.Tensor  # values recalled under the keys: delta
  keys_BKE: torch.Tensor
  new_BKE: torch.Tensor  # the part of the keys that z does not hold yet: z-correction
  scores_BK: torch.Tensor  # of a learned decay
  tokens_BK: torch.Tensor


class Layer(NamedTuple):
  """The state of a layer. The memory and what is pending are None without a memory system."""

  M_BKEU: torch.Tensor | None
  z_BKE: torch.Tensor | None
  pending: Update | None
  k_BKCE: torch.Tensor  # of the open segment, rotated
  v_BKCU: torch.Tensor


class InfiniCache:
  """The state of the model after the texts that it has read; its size does not grow with them.

  It is changed in place by every call. `fork` makes an independent one.

  Attributes:
    layers: the state of each layer.
    fill: for each lane, the tokens of its open segment.
    open_BC: which columns of the layers' keys are tokens of the lane's open segment.
    seen: how many columns of `input_ids` it holds; 0 after `fork` and `load_state`.
    last_B: the tokens of the last of these columns.
  """

  is_linear = (True,)  # transformers does not cut the text; `prepare_inputs_for_generation` does
  is_compileable = False

  def __init__(self, config, lanes, device, dtype):
    K, E = config.num_key_value_heads, config.head_dim
    zeros = lambda *shape: torch.zeros(lanes, K, *shape, device=device)
    none = torch.zeros(lanes, K, 0, E, device=device, dtype=dtype)

    def layer(settings):
      if settings is None:
        return Layer(None, None, None, none, none)
      return Layer(zeros(E, E), zeros(E), nothing(zeros(E, E), zeros(E)), none, none)

    self.layers = [layer(config.systems[name]) for name in config.mixers]
    self.fill, self.seen, self.last_B = [0] * lanes, 0, None
    self.open_BC = torch.zeros(lanes, 0, dtype=torch.bool, device=device)

  @classmethod
  def of_state(cls, state, config, device, dtype):
    """The cache of a saved state (`infini_state.State`) of this model."""
    cache = cls(config, len(state.unread), device, dtype)
    one_system, numbers = len(config.systems) == 1, dict.fromkeys(config.systems, 0)
    for i, name in enumerate(config.mixers):
      prefix = "stream." if one_system else f"stream.{name}."
      number, numbers[name] = numbers[name], numbers[name] + 1
      found = {
        field.removeprefix(prefix): torch.from_numpy(array[number].copy()).to(device)
        for field, array in state.arrays.items()
        if field.startswith(prefix)
      }
      slots = "" if config.systems[name] is None else "cache."
      k, v = (found[f"{slots}{x}"].transpose(1, 2).to(dtype) for x in ("k_BNKE", "v_BNKU"))
      layer, fill_B = cache.layers[i]._replace(k_BKCE=k, v_BKCU=v), found[f"{slots}fill_B"]
      if slots:
        M, z = found["memory.M_BKEU"], found["memory.z_BKE"]
        sums = {x: found[f"pending.{x}"] for x in Update._fields if f"pending.{x}" in found}
        layer = layer._replace(M_BKEU=M, z_BKE=z, pending=nothing(M, z)._replace(**sums))
      cache.layers[i] = layer
    cache.fill = fill_B.tolist()
    columns = torch.arange(cache.layers[0].k_BKCE.shape[2], device=device)
    cache.open_BC = columns < fill_B[:, None]
    return cache

  def fork(self):
    """An independent cache of the same text, for a call that gets only what follows."""
    other = object.__new__(InfiniCache)
    other.layers, other.fill = list(self.layers), list(self.fill)
    other.open_BC, other.seen, other.last_B = self.open_BC, 0, None
    return other

  def get_seq_length(self, layer=0):
    """How many columns of `input_ids` it holds."""
    return self.seen

  def reorder_cache(self, lane_B):
    """Takes these lanes instead of its own, for beam search."""
    chosen = lambda x: None if x is None else x[lane_B.to(x.device)]

    def layer(state):
      pending = state.pending and Update(*map(chosen, state.pending))
      return Layer(*map(chosen, state._replace(pending=None)))._replace(pending=pending)

    self.layers = [layer(state) for state in self.layers]
    self.fill = [self.fill[i] for i in lane_B.tolist()]
    self.open_BC, self.last_B = chosen(self.open_BC), chosen(self.last_B)


def nothing(M_BKEU, z_BKE):
  """The update of no token."""
  no_M, no_z = torch.zeros_like(M_BKEU), torch.zeros_like(z_BKE)
  return Update(no_M, no_M, no_z, no_z, no_z[..., 0], no_z[..., 0])


def sigma(x):
  """`elu(x) + 1` in float32, without the cancellation of computing it so for negative `x`."""
  x = x.float()
  return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


def divided(value, weight):
  """`value / weight`, and 0 where the weight is 0."""
  return torch.where(weight > 0, value / torch.where(weight > 0, weight, 1.0), 0.0)


def linear(layer, x):
  """A layer in float32: older versions of transformers load its weights in another type."""
  return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def chosen_lanes(flag_B, yes, no):
  """Chooses between two tensors lane by lane."""
  return torch.where(flag_B.view(-1, *[1] * (no.ndim - 1)), yes, no)


class Memory(nn.Module):
  """The compressive memory of a layer: how it is read, mixed and written. All in float32."""

  def __init__(self, config, own):
    super().__init__()
    self.own, D, H = own, config.hidden_size, config.num_attention_heads
    self.K, self.E, R = config.num_key_value_heads, config.head_dim, own["adapter_rank"]
    self.beta = nn.Parameter(torch.zeros(H))
    if own["write_gate"]:
      self.write = nn.Linear(D, self.K)
    if own["learned_decay"]:
      self.decay = nn.Linear(D, self.K)
    for name, heads in {"q": H, "k": self.K, "v": self.K}.items() if R else ():
      setattr(self, f"{name}_down", nn.Linear(D, R, bias=False))
      setattr(self, f"{name}_up", nn.Linear(R, heads * self.E, bias=False))

  def forward(self, local_BHTU, q_BHTE, k_BKTE, v_BKTU, x_BTD, real_BT, state, full_B):
    """One piece of a segment: reads the memory, and writes it where a segment is full.

    Args:
      local_BHTU: the output of attention in the segment.
      q_BHTE, k_BKTE, v_BKTU: un-rotated queries and keys, and values.
      x_BTD: what they are projections of.
      real_BT: False for padding; None: all are tokens.
      state: the `Layer` before the piece.
      full_B: the lanes whose segment ends with this piece; None: no lane's does.

    Returns:
      The mixed output (B, H, T, U) in the type of `local_BHTU`, and the state after the piece.
    """
    M_BKEU, z_BKE, pending = state[:3]
    x_BTD = x_BTD.float()
    q, k, v = (self._adapted(*x, x_BTD) for x in (("q", q_BHTE), ("k", k_BKTE), ("v", v_BKTU)))
    out_BHTU = self._mixed(local_BHTU, self._read(q, M_BKEU, z_BKE), z_BKE)
    update = self._update(k, v, x_BTD, real_BT, M_BKEU, z_BKE)
    pending = Update(*(a + b for a, b in zip(pending, update, strict=True)))
    if full_B is not None:
      M, z = self._committed(M_BKEU, z_BKE, pending)
      M_BKEU, z_BKE = chosen_lanes(full_B, M, M_BKEU), chosen_lanes(full_B, z, z_BKE)
      pending = Update(*(chosen_lanes(full_B, torch.zeros_like(a), a) for a in pending))
    return out_BHTU, state._replace(M_BKEU=M_BKEU, z_BKE=z_BKE, pending=pending)

  def _adapted(self, name, heads_BHTE, x_BTD):
    """The memory's own queries, keys or values."""
    if not self.own["adapter_rank"]:
      return heads_BHTE
    down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
    more_BT = linear(up, linear(down, x_BTD) * self.own["adapter_scale"])
    return heads_BHTE + more_BT.unflatten(-1, (-1, self.E)).transpose(1, 2)

  def _read(self, q_BHTE, M_BKEU, z_BKE):
    q_BKGTE = sigma(q_BHTE).unflatten(1, (self.K, -1))
    weight_BKGT = torch.einsum("bkgte,bke->bkgt", q_BKGTE, z_BKE)
    return divided(torch.einsum("bkgte,bkeu->bkgtu", q_BKGTE, M_BKEU), weight_BKGT[..., None])

  def _mixed(self, local_BHTU, recalled_BKGTU, z_BKE):
    local = local_BHTU.float().unflatten(1, (self.K, -1))
    if self.own["readout_norm"]:
      square = recalled_BKGTU.square().mean(-1, keepdim=True)
      recalled_BKGTU = recalled_BKGTU * torch.rsqrt(square + READOUT_EPSILON)
    kind = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}[self.own["gate"]]
    gate = kind(self.beta.float()).view(1, self.K, -1, 1, 1)
    if not self.own["scale_first_segment"]:  # a head with an empty memory is all local
      gate = torch.where((z_BKE.amax(-1) == 0)[:, :, None, None, None], 0.0, gate)
    mixed = gate * recalled_BKGTU + (1 - gate) * local
    return mixed.flatten(1, 2).to(local_BHTU.dtype)

  def _update(self, k_BKTE, v_BKTU, x_BTD, real_BT, M_BKEU, z_BKE):
    """What these tokens add; parts that the rule does not use are 0."""
    whole = sigma(k_BKTE)
    if self.own["normalize_keys"]:
      whole = divided(whole, whole.sum(-1, keepdim=True))
    none = nothing(M_BKEU, z_BKE)
    real = torch.ones(x_BTD.shape[:2], device=x_BTD.device) if real_BT is None else real_BT.float()
    k = whole * real[:, None, :, None]
    if self.own["write_gate"]:
      k = k * F.hardsigmoid(linear(self.write, x_BTD)).transpose(1, 2)[..., None]
    recalled, new, scores = none.recalled_BKEU, none.new_BKE, none.scores_BK
    if self.own["rule"] == "delta":
      value = torch.einsum("bkte,bkeu->bktu", whole, M_BKEU)
      weight = torch.einsum("bkte,bke->bkt", whole, z_BKE)
      recalled = torch.einsum("bkte,bktu->bkeu", k, divided(value, weight[..., None]))
    if self.own["z_correction"]:
      held = torch.einsum("bkte,bke->bkt", whole, z_BKE)
      gamma = (1 - divided(held, whole.square().sum(-1))).clamp(0, 1).detach()
      new = torch.einsum("bkt,bkte->bke", gamma, k)
    if self.own["learned_decay"]:
      scores = (linear(self.decay, x_BTD) * real[..., None]).sum(1)
    written = torch.einsum("bkte,bktu->bkeu", k, v_BKTU.float())
    tokens = real.sum(1, keepdim=True).expand_as(none.tokens_BK)
    return Update(written, recalled, k.sum(2), new, scores, tokens)

  def _committed(self, M_BKEU, z_BKE, update):
    """M and z after a segment."""
    keys = update.keys_BKE
    left_BK = torch.full_like(update.tokens_BK, self.own["decay"])
    if self.own["learned_decay"]:
      left_BK = left_BK * torch.sigmoid(update.scores_BK / update.tokens_BK.clamp(min=1))
    left_BK = torch.where(keys.amax(-1) == 0, 1.0, left_BK)
    # A segment that is much longer than all before it would make delta grow: it is damped.
    growth_BK = divided(keys.sum(-1), z_BKE.sum(-1))
    if self.own["z_correction"]:
      growth_BK = divided(keys, z_BKE).amax(-1).detach()
    share_BK = (DELTA_GROWTH / growth_BK.clamp(min=1)).clamp(max=1) * left_BK
    kept = left_BK[..., None, None] * M_BKEU
    M = kept + update.written_BKEU - share_BK[..., None, None] * update.recalled_BKEU
    more_BKE = update.new_BKE if self.own["z_correction"] else keys
    return M, left_BK[..., None] * z_BKE + more_BKE
