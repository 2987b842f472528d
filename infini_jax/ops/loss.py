"""Cross-entropy in chunks, so that the logits of a long sequence never exist at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infini_jax.ops.attention import capped
from infini_jax.ops.products import einsum
from infini_jax.ops.shards import axis_names, axis_size, on_shards, spec_of


def cross_entropy(
  hidden_BTD: Float[Array, "B T D"],
  head_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  *,
  chunk: int,
  softcap: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]:
  """The negative log-likelihood of each target, the normalizer of each softmax, the right tokens.

  At most `chunk` tokens of each lane have logits at any time, in the backward pass too. Where T is
  divided over devices, either they all gather the whole head, or each takes some rows of the
  vocabulary and they gather the tokens: whichever is less to send.

  Args:
    hidden_BTD: the last layer's normalised output.
    head_VD: the output embedding as it is stored: its gradient is summed in its own type.
    targets_BT: the token that follows each position.
    chunk: tokens of a lane per block, on each device that T is divided over.
    softcap: logits x become `softcap * tanh(x / softcap)` (Gemma 2); 0: off.

  Returns:
    `nll_BT` in nats and `log_z_BT`, both float32; `right_BT`: the target is likelier than
    any other token.
  """
  return _each_token(hidden_BTD, head_VD, targets_BT, chunk=chunk, softcap=softcap)


def divergence(
  hidden_BTD: Float[Array, "B T D"],
  head_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  teacher_BTD: Float[Array, "B T D"],
  teacher_VD: Float[Array, "V D"],
  *,
  chunk: int,
  softcap: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B T"]]:
  """As `cross_entropy`, and the divergence from a teacher (Hinton et al., arXiv 1503.02531).

  Args:
    hidden_BTD, head_VD, targets_BT, chunk, softcap: as there; the softcap is the teacher's too.
    teacher_BTD, teacher_VD: the teacher's hidden states and head, laid out as the model's.

  Returns:
    As `cross_entropy`, and `KL(teacher || model)` of each position in nats, float32.
  """
  teacher = jax.lax.stop_gradient((teacher_BTD, teacher_VD))
  return _each_token(hidden_BTD, head_VD, targets_BT, *teacher, chunk=chunk, softcap=softcap)


def weighted_loss(
  hidden_BTD: Float[Array, "B T D"],
  head_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  weight_BT: Float[Array, "B T"],
  *,
  chunk: int,
  softcap: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, ""], tuple[Float[Array, "B T"], Bool[Array, "B T"]]]:
  """A loss whose gradient is computed together with it: no logits are computed a second time.

      sum_t weight_t (nll_t + z_loss log_z_t^2)

  Args:
    hidden_BTD, head_VD, targets_BT, chunk, softcap: as of `cross_entropy`.
    weight_BT: of each target; it gets no gradient.
    z_loss: the weight of the squared normalizer.

  Returns:
    The loss; and `nll_BT` and `right_BT` of `cross_entropy`, without gradient.
  """
  return _weighted(hidden_BTD, head_VD, targets_BT, weight_BT, _How(chunk, softcap, z_loss))


class _How(NamedTuple):
  """The constant arguments."""

  chunk: int
  softcap: float
  z_loss: float

  def loss(self, nll_BT, log_z_BT, weight_BT):
    """The loss, of tokens."""
    return (weight_BT * (nll_BT + self.z_loss * log_z_BT**2)).sum()


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted(hidden_BTD, head_VD, targets_BT, weight_BT, how):
  options = {"chunk": how.chunk, "softcap": how.softcap}
  nll_BT, log_z_BT, right_BT = cross_entropy(hidden_BTD, head_VD, targets_BT, **options)
  return how.loss(nll_BT, log_z_BT, weight_BT), (nll_BT, right_BT)


def _weighted_forward(hidden_BTD, head_VD, targets_BT, weight_BT, how):
  wanted = head_VD.perturbed  # a frozen head needs no gradient
  hidden_BTD, head_VD = hidden_BTD.value, head_VD.value
  targets_BT, weight_BT = targets_BT.value, weight_BT.value
  layout = _Layout(hidden_BTD, head_VD)

  def on_one(hidden_BTI, head_VD, targets_BT, weight_BT):
    own = _Blocks(layout, targets_BT.shape[1], how)
    whole_VD, scatter = jax.vjp(layout.gathered, head_VD)

    def block(sum_VD, xs):
      hidden_BTI, targets_BT, weight_BT = xs
      run = lambda hidden_BTI, head=whole_VD: own.block(head, None, hidden_BTI, targets_BT)
      asked = (hidden_BTI, whole_VD) if wanted else (hidden_BTI,)
      (nll_BT, log_z_BT, right_BT), back = _vjp(run, *asked)
      d_hidden, *d_head = back((weight_BT, 2 * how.z_loss * log_z_BT * weight_BT))
      return sum([sum_VD, *d_head]), (nll_BT, log_z_BT, right_BT, d_hidden)

    start = jnp.zeros_like(whole_VD) if wanted else jnp.zeros(())
    xs = [hidden_BTI, targets_BT, weight_BT]
    sum_VD, outs = own.each(block, start, xs)
    return *outs, scatter(sum_VD)[0] if wanted else None

  outs = layout.run(
    on_one,
    ("BT", "BT", "BT", "BTI", "VD" if wanted else None),
    hidden_BTI=hidden_BTD, head_VD=head_VD, targets_BT=targets_BT, weight_BT=weight_BT,
  )  # fmt: skip
  nll_BT, log_z_BT, right_BT, *gradients = outs
  return (how.loss(nll_BT, log_z_BT, weight_BT), (nll_BT, right_BT)), gradients


def _vjp(f, *args):
  """`jax.vjp` of a function whose last result has no gradient."""

  def split(*args):
    *outs, last = f(*args)
    return tuple(outs), last

  outs, back, last = jax.vjp(split, *args, has_aux=True)
  return (*outs, last), back


def _weighted_backward(how, gradients, d_outs):
  d_hidden, d_head = gradients
  d_loss = d_outs[0]
  scaled = lambda x: None if x is None else (d_loss * x).astype(x.dtype)
  return scaled(d_hidden), scaled(d_head), None, None


_weighted.defvjp(_weighted_forward, _weighted_backward, symbolic_zeros=True)


def _each_token(hidden_BTD, head_VD, targets_BT, *teacher, chunk, softcap):
  layout = _Layout(hidden_BTD, head_VD)

  def on_one(hidden_BTI, head_VD, targets_BT, teacher_BTI=None, teacher_VD=None):
    own = _Blocks(layout, targets_BT.shape[1], _How(chunk, softcap, 0.0))
    head_VD = layout.gathered(head_VD)
    told = [] if teacher_BTI is None else [teacher_BTI]
    teacher_VD = None if teacher_VD is None else layout.gathered(teacher_VD)
    block = lambda carry, xs: (carry, own.block(head_VD, teacher_VD, *xs))
    block = jax.checkpoint(block) if own.blocks > 1 else block
    return own.each(block, None, [hidden_BTI, targets_BT, *told])[1]

  arrays = {"hidden_BTI": hidden_BTD, "head_VD": head_VD, "targets_BT": targets_BT}
  arrays |= dict(zip(("teacher_BTI", "teacher_VD"), teacher, strict=False))
  return layout.run(on_one, ("BT",) * (4 if teacher else 3), **arrays)


class _Layout:
  """How the tokens and the head are divided over devices."""

  def __init__(self, hidden_BTD: Array, head_VD: Array):
    self.lanes, self.over, _ = spec_of(hidden_BTD)
    self.head = spec_of(head_VD)
    rows, self.columns = map(axis_names, self.head)
    parts = axis_size((*rows, *axis_names(self.over)))
    T, V = hidden_BTD.shape[1], head_VD.shape[0]
    self.divided = self.columns[-1:] == (self.over,) and divides_vocabulary(
      T, V, axis_size(self.over), parts
    )
    # Devices that each have other rows of the head.
    self.row_axes = (*rows, self.over) if self.divided else rows
    tokens = (*axis_names(self.lanes), *axis_names(self.over))
    self.copies = tuple(axis for axis in tokens if axis not in self.columns)

  def run(self, on_one: Callable, out: Any, **arrays: Array) -> Any:
    """`ops.shards.on_shards`."""
    axes = {"B": self.lanes, "T": self.over, **dict(zip("VD", self.head, strict=True))}
    return on_shards(on_one, axes, out, follow=True, **arrays)

  def together(self, reduce: Callable, x: Array) -> Array:
    """Reduced over the devices that have other rows."""
    return reduce(x, self.row_axes) if self.row_axes else x

  def gathered(self, head_VD: Array) -> Array:
    """The rows of the head of this device, gathered."""
    # Gradients go the same way back, summed and scattered; at last over copies, when small.
    head_VD = jax.lax.pcast(head_VD, self.copies, to="varying")
    if self.divided:
      head_VD = jax.lax.all_to_all(head_VD, self.over, 0, 1, tiled=True)
    for axis in reversed([a for a in self.columns if a not in self.row_axes]):
      head_VD = jax.lax.all_gather(head_VD, axis, axis=1, tiled=True)
    return head_VD


class _Blocks:
  """One device's tokens, in blocks."""

  def __init__(self, layout: _Layout, T: int, how: _How):
    self.layout, self.T, self.softcap = layout, T, how.softcap
    self.blocks = -(-T // how.chunk)
    self.size = -(-T // self.blocks)

  def each(self, block: Callable, carry: Any, xs: list[Array]) -> tuple[Any, Any]:
    """`block(carry, xs)` for every block of arrays (B,T,...), in turn."""
    if self.blocks == 1:
      return block(carry, xs)
    B = xs[0].shape[0]

    def cut(x):
      padding = (0, self.blocks * self.size - self.T)
      x = jnp.pad(x, ((0, 0), padding) + ((0, 0),) * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(B, self.blocks, self.size, *x.shape[2:]), 1, 0)

    carry, outs = jax.lax.scan(block, carry, [*map(cut, xs)])
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1, *x.shape[3:])[:, : self.T]
    return carry, jax.tree.map(join, outs)

  def block(self, head_VD, teacher_VD, *xs):
    """The results for tokens of a block: their hidden states, targets, and the teacher's states."""
    layout = self.layout
    column_V = jnp.arange(head_VD.shape[0], dtype=xs[1].dtype)
    if layout.row_axes:
      column_V += jax.lax.axis_index(layout.row_axes) * len(column_V)
    if layout.divided:
      xs = tuple(jax.lax.all_gather(x, layout.over, axis=1, tiled=True) for x in xs)
    hidden_BTD, wanted_BT, *told = xs
    logits_BTV = self._logits(hidden_BTD, head_VD)
    _, _, log_z_BT = self._shares(logits_BTV)
    # A sum over the vocabulary, not a look-up: each device has the target among its rows, or 0.
    hit_BTV = column_V[None, None] == wanted_BT[..., None]
    fixed_BTV = jax.lax.stop_gradient(logits_BTV)
    target_BT = layout.together(jax.lax.psum, jnp.where(hit_BTV, logits_BTV, 0.0).sum(-1))
    other_BT = layout.together(jax.lax.pmax, jnp.where(hit_BTV, -jnp.inf, fixed_BTV).max(-1))
    outs = [log_z_BT - target_BT, log_z_BT, target_BT > other_BT]
    for told_BTI in told:
      told_BTV = self._logits(told_BTI, teacher_VD)
      share_BTV, total_BT, told_z_BT = self._shares(told_BTV)
      above_BT = (share_BTV * (told_BTV - logits_BTV)).sum(-1)
      above_BT = layout.together(jax.lax.psum, above_BT) / total_BT
      outs.append(above_BT - told_z_BT + log_z_BT)
    if not layout.divided:
      return tuple(outs)
    first = jax.lax.axis_index(layout.over) * self.size
    return tuple(jax.lax.dynamic_slice_in_dim(x, first, self.size, 1) for x in outs)

  def _logits(self, hidden_BTD, head_VD):
    products = {"preferred_element_type": jnp.float32}
    head_VD = head_VD.astype(hidden_BTD.dtype)
    return capped(einsum("BTD,VD->BTV", hidden_BTD, head_VD, **products), self.softcap)

  def _shares(self, logits_BTV):
    """The softmax before its division, and the logarithm of what it is divided by."""
    together = self.layout.together
    top_BT = together(jax.lax.pmax, jax.lax.stop_gradient(logits_BTV).max(-1))
    share_BTV = jnp.exp(logits_BTV - top_BT[..., None])
    total_BT = together(jax.lax.psum, share_BTV.sum(-1))
    return share_BTV, total_BT, top_BT + jnp.log(total_BT)


def divides_vocabulary(T: int, V: int, over: int, parts: int) -> bool:
  """Whether the devices of one sequence divide the vocabulary, and gather the tokens.

  Args:
    T, V: tokens of a lane, and the vocabulary.
    over: devices that T is divided over.
    parts: devices that V would be divided over.
  """
  # Hidden states are sent three times (2 bytes each); the head and its gradient once (4 bytes).
  return over > 1 and V % parts == 0 and 6 * T < 8 * V
