"""Cross-entropy in chunks, so that the logits of a long sequence never exist at once."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from infini_jax.ops.shards import axis_size, on_shards, spec_of


def cross_entropy(
  hidden_BTD: Float[Array, "B T D"],
  head_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  *,
  chunk: int,
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

  Returns:
    `nll_BT` in nats and `log_z_BT`, both float32; `right_BT`: the target is likelier than
    any other token.
  """
  B, T, _ = hidden_BTD.shape
  lanes, over, _ = spec_of(hidden_BTD)
  P = axis_size(over)  # devices that T is divided over: each of them cuts its own part
  head_VD, hidden_over = _place_head(head_VD, T, over)
  blocks = -(-T // (P * chunk))
  size = -(-T // (P * blocks))

  def block(hidden_BPTD, targets_BPT):
    if hidden_over != over:
      hidden_BPTD = jax.reshard(hidden_BPTD, PartitionSpec(lanes))
      targets_BPT = jax.reshard(targets_BPT, PartitionSpec(lanes))
    logits_BPTV = jnp.einsum(
      "BPTD,VD->BPTV",
      hidden_BPTD,
      head_VD.astype(hidden_BPTD.dtype),
      preferred_element_type=jnp.float32,
    )
    column_V = jnp.arange(head_VD.shape[0], dtype=targets_BPT.dtype)
    log_z_BPT = jax.nn.logsumexp(logits_BPTV, axis=-1)
    # A sum over the vocabulary instead of a gather: it stays local when the vocabulary is sharded.
    hit_BPTV = column_V[None, None, None] == targets_BPT[..., None]
    target_BPT = jnp.where(hit_BPTV, logits_BPTV, 0.0).sum(-1)
    other_BPT = jnp.where(hit_BPTV, -jnp.inf, logits_BPTV).max(-1)
    outs = (log_z_BPT - target_BPT, log_z_BPT, target_BPT > other_BPT)
    if hidden_over != over:
      outs = jax.tree.map(lambda x: jax.reshard(x, PartitionSpec(lanes, over)), outs)
    return outs

  def reshape(x, shape, *spec):
    in_mesh = not jax.sharding.get_abstract_mesh().empty
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(*spec) if in_mesh else None)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, P * blocks * size - T)) + ((0, 0),) * (x.ndim - 2))
    return reshape(x, (B, P, blocks, size, *x.shape[2:]), lanes, over)

  def join(x_BPT):
    return reshape(x_BPT, (B, P * blocks * size), lanes, over)[:, :T]

  hidden, targets = split(hidden_BTD), split(targets_BT)
  if blocks == 1:
    outs = jax.tree.map(lambda x: x[:, :, None], block(hidden[:, :, 0], targets[:, :, 0]))
  else:
    xs = (jnp.moveaxis(hidden, 2, 0), jnp.moveaxis(targets, 2, 0))
    _, outs = jax.lax.scan(lambda c, x: (c, jax.checkpoint(block)(*x)), None, xs)
    outs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), outs)
  return tuple(map(join, outs))


def divides_vocabulary(T: int, V: int, over: int, parts: int) -> bool:
  """Whether devices that share a sequence take parts of the vocabulary, and gather the tokens.

  Args:
    T, V: tokens of a lane, and the vocabulary.
    over: devices that T is divided over.
    parts: devices that V would be divided over.
  """
  # Hidden states travel three times in 2 bytes, the head and its gradient once each in 4.
  return over > 1 and V % parts == 0 and 6 * T < 8 * V


def _place_head(head_VD, T, over):
  """The head, laid out for use, and the axis over which tokens stay divided."""
  if jax.sharding.get_abstract_mesh().empty:
    return head_VD, None
  rows, columns = spec_of(head_VD)
  both = tuple(axis for axis in (rows, over) if axis is not None)
  if not divides_vocabulary(T, head_VD.shape[0], axis_size(over), axis_size(both)):
    return jax.reshard(head_VD, PartitionSpec(rows)), over
  *whole, last = columns if isinstance(columns, tuple) else (columns,)
  if last != over:
    return jax.reshard(head_VD, PartitionSpec(both)), None

  def piece(head_VD):  # said outright: XLA would gather everything, and cut
    head_VD = jax.lax.all_to_all(head_VD, over, 0, 1, tiled=True)
    for axis in reversed(whole):
      head_VD = jax.lax.all_gather(head_VD, axis, axis=1, tiled=True)
    return head_VD

  place = spec_of(head_VD)
  return on_shards(piece, head_VD, specs=(place,), out_specs=PartitionSpec(both)), None
