"""Cross-entropy in chunks, so that the logits of a long sequence never exist at once."""

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
  """The negative log-likelihood of each target, each softmax's normalizer, and what was right.

  At most `chunk` tokens of each lane have logits at any time, in the backward pass too. Where T is
  divided over devices, either they all gather the whole head, or each takes a part of the
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
  """As `cross_entropy`, and how far the model is from a teacher (Hinton et al., arXiv 1503.02531).

  Args:
    hidden_BTD, head_VD, targets_BT, chunk, softcap: as there; the softcap is the teacher's too.
    teacher_BTD, teacher_VD: the teacher's hidden states and head, laid out as the model's.

  Returns:
    As `cross_entropy`, and `KL(teacher || model)` of each position in nats, float32.
  """
  teacher = jax.lax.stop_gradient((teacher_BTD, teacher_VD))
  return _each_token(hidden_BTD, head_VD, targets_BT, *teacher, chunk=chunk, softcap=softcap)


def _each_token(hidden_BTD, head_VD, targets_BT, *teacher, chunk, softcap):
  lanes, over, _ = spec_of(hidden_BTD)
  rows, columns = map(axis_names, spec_of(head_VD))
  parts = axis_size((*rows, *axis_names(over)))
  T, V = hidden_BTD.shape[1], head_VD.shape[0]
  divided = columns[-1:] == (over,) and divides_vocabulary(T, V, axis_size(over), parts)
  sharers = (*rows, over) if divided else rows  # devices that each have other rows of the head
  copies = tuple(a for a in (*axis_names(lanes), *axis_names(over)) if a not in columns)

  def together(reduce, x):
    return reduce(x, sharers) if sharers else x

  def gathered(head_VD):
    # Gradients go the same way back, summed and scattered; at last over copies, when small.
    head_VD = jax.lax.pcast(head_VD, copies, to="varying")
    if divided:
      head_VD = jax.lax.all_to_all(head_VD, over, 0, 1, tiled=True)
    for axis in reversed([a for a in columns if a not in sharers]):
      head_VD = jax.lax.all_gather(head_VD, axis, axis=1, tiled=True)
    return head_VD

  def logits(hidden_BTD, head_VD):
    products = {"preferred_element_type": jnp.float32}
    head_VD = head_VD.astype(hidden_BTD.dtype)
    return capped(einsum("BTD,VD->BTV", hidden_BTD, head_VD, **products), softcap)

  def shares(logits_BTV):
    """The softmax before its division, and the logarithm of what it is divided by."""
    top_BT = together(jax.lax.pmax, jax.lax.stop_gradient(logits_BTV).max(-1))
    share_BTV = jnp.exp(logits_BTV - top_BT[..., None])
    total_BT = together(jax.lax.psum, share_BTV.sum(-1))
    return share_BTV, total_BT, top_BT + jnp.log(total_BT)

  def piece(hidden_BTI, head_VD, targets_BT, teacher_BTI=None, teacher_VD=None):
    head_VD = gathered(head_VD)
    told = [] if teacher_BTI is None else [teacher_BTI]
    teacher_heads = [] if teacher_VD is None else [gathered(teacher_VD)]
    column_V = jnp.arange(head_VD.shape[0], dtype=targets_BT.dtype)
    if sharers:
      column_V += jax.lax.axis_index(sharers) * len(column_V)

    def block(*xs):
      if divided:
        xs = tuple(jax.lax.all_gather(x, over, axis=1, tiled=True) for x in xs)
      hidden_BTD, wanted_BT, *told = xs
      logits_BTV = logits(hidden_BTD, head_VD)
      _, _, log_z_BT = shares(logits_BTV)
      # A sum over the vocabulary, not a look-up: each device has the target among its rows, or 0.
      hit_BTV = column_V[None, None] == wanted_BT[..., None]
      fixed_BTV = jax.lax.stop_gradient(logits_BTV)
      target_BT = together(jax.lax.psum, jnp.where(hit_BTV, logits_BTV, 0.0).sum(-1))
      other_BT = together(jax.lax.pmax, jnp.where(hit_BTV, -jnp.inf, fixed_BTV).max(-1))
      outs = [log_z_BT - target_BT, log_z_BT, target_BT > other_BT]
      for told_BTV in map(logits, told, teacher_heads):
        share_BTV, total_BT, told_z_BT = shares(told_BTV)
        above_BT = together(jax.lax.psum, (share_BTV * (told_BTV - logits_BTV)).sum(-1)) / total_BT
        outs.append(above_BT - told_z_BT + log_z_BT)
      if not divided:
        return tuple(outs)
      first = jax.lax.axis_index(over) * size
      return tuple(jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in outs)

    B, T = targets_BT.shape
    blocks = -(-T // chunk)
    size = -(-T // blocks)
    xs = [hidden_BTI, targets_BT, *told]
    if blocks == 1:
      return block(*xs)

    def split(x):
      x = jnp.pad(x, ((0, 0), (0, blocks * size - T)) + ((0, 0),) * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(B, blocks, size, *x.shape[2:]), 1, 0)

    _, outs = jax.lax.scan(lambda c, x: (c, jax.checkpoint(block)(*x)), None, [*map(split, xs)])
    return tuple(jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T] for x in outs)

  arrays = {"hidden_BTI": hidden_BTD, "head_VD": head_VD, "targets_BT": targets_BT}
  arrays |= dict(zip(("teacher_BTI", "teacher_VD"), teacher, strict=False))
  axes = {"B": lanes, "T": over, **dict(zip("VD", spec_of(head_VD), strict=True))}  # I = D, whole
  return on_shards(piece, axes, ("BT",) * (4 if teacher else 3), follow=True, **arrays)


def divides_vocabulary(T: int, V: int, over: int, parts: int) -> bool:
  """Whether devices that share a sequence take parts of the vocabulary, and gather the tokens.

  Args:
    T, V: tokens of a lane, and the vocabulary.
    over: devices that T is divided over.
    parts: devices that V would be divided over.
  """
  # Hidden states travel three times in 2 bytes, the head and its gradient once each in 4.
  return over > 1 and V % parts == 0 and 6 * T < 8 * V
