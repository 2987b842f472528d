"""Cross-entropy in chunks, so that the logits of a long sequence never exist at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
  hidden_BTD: Float[Array, "B T D"],
  head_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  *,
  chunk: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]:
  """The negative log-likelihood of each target, each softmax's normalizer, and what was right.

  At most `chunk` tokens of each lane have logits at any time, in the backward pass too.

  Args:
    hidden_BTD: the last layer's normalised output.
    head_VD: the output embedding, in the type it is stored in (its gradient is summed in that).
    targets_BT: the token that follows each position.
    chunk: tokens of a lane per block.

  Returns:
    `nll_BT` in nats and `log_z_BT`, both float32; `right_BT`: the target is likelier than
    any other token.
  """
  B, T, _ = hidden_BTD.shape
  blocks = -(-T // chunk)
  size = -(-T // blocks)

  def block(hidden_BTD, targets_BT):
    logits_BTV = jnp.einsum(
      "BTD,VD->BTV",
      hidden_BTD,
      head_VD.astype(hidden_BTD.dtype),
      preferred_element_type=jnp.float32,
    )
    column_V = jnp.arange(head_VD.shape[0], dtype=targets_BT.dtype)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A sum over the vocabulary instead of a gather: it stays local when the vocabulary is sharded.
    hit_BTV = column_V[None, None] == targets_BT[..., None]
    target_BT = jnp.where(hit_BTV, logits_BTV, 0.0).sum(-1)
    other_BT = jnp.where(hit_BTV, -jnp.inf, logits_BTV).max(-1)
    return log_z_BT - target_BT, log_z_BT, target_BT > other_BT

  if blocks == 1:
    return block(hidden_BTD, targets_BT)
  pad = blocks * size - T
  hidden = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0))).reshape(B, blocks, size, -1)
  targets = jnp.pad(targets_BT, ((0, 0), (0, pad))).reshape(B, blocks, size)
  xs = (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0))
  _, outs = jax.lax.scan(lambda c, x: (c, jax.checkpoint(block)(*x)), None, xs)
  nll_BT, log_z_BT, right_BT = (
    jnp.moveaxis(o, 0, 1).reshape(B, blocks * size)[:, :T] for o in outs
  )
  return nll_BT, log_z_BT, right_BT
