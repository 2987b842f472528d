"""States of several lanes side by side."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def where_lane(flag_B: Bool[Array, " B"], yes, no, axis: int = 0):
  """Chooses between two states lane by lane.

  Args:
    flag_B: of each lane.
    yes: a tree of arrays, each with B lanes or one; or a number.
    no: a tree of the same kind, each array with B lanes.
    axis: of the lanes, 1 in states with the layers in front.
  """

  def choose(n, y):
    return jnp.where(flag_B.reshape(*(1,) * axis, -1, *(1,) * (n.ndim - axis - 1)), y, n)

  if isinstance(yes, (int, float)):
    return jax.tree.map(lambda n: choose(n, jnp.array(yes, n.dtype)), no)
  return jax.tree.map(choose, no, yes)
