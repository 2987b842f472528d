"""States of several lanes side by side."""

from collections.abc import Callable

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


def each_in_turn(reset_BS: Bool[Array, "B S"], step: Callable, start, *xs_BS):
  """A recurrence over S segments: the state before each of them, and after the last.

  Args:
    reset_BS: True where the state is set to 0 before a segment.
    step: from the state and what `xs_BS` hold of a segment to the state after it.
    start: the state before the first segment, with the lanes in front.
    xs_BS: arrays, or trees of them; None is an absent one.

  Returns:
    The states before the segments, with an axis S after B; and the state after them all.
  """
  xs_SB = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (reset_BS, *xs_BS))

  def body(state, x):
    state = where_lane(x[0], 0, state)
    return step(state, *x[1:]), state

  last, before_SB = jax.lax.scan(body, start, xs_SB)
  return jnp.moveaxis(before_SB, 0, 1), last
