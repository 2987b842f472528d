"""From a mesh to single devices and back: code inside `on_shards` does not use the mesh.

Attention and memory need no other device: lanes and heads are independent, and segments too, except
for the state that passes from one to the next. Therefore the operations of this package are written
for the arrays of one device, and run by `shard_map`. What they send is explicit: `carry` passes the
state of an affine recurrence from device to device along one mesh axis.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

GATHERED = 8  # up to so many devices everyone gets everything at once; beyond, by doubling

Affine = tuple[jax.Array, jax.Array]  # (factor, term): the state x becomes factor x + term
Axes = dict[str, Any]  # the mesh axes of each letter; a letter that is missing is not divided


def spec_of(x: jax.Array) -> PartitionSpec:
  """How an array is divided over the mesh, one entry for each dimension."""
  spec = tuple(jax.typeof(x).sharding.spec)
  return PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))


def token_axes(q_BTHE: jax.Array, whole: bool = False) -> Axes:
  """How the tokens of a layer are divided over the mesh, read from its queries.

  Args:
    q_BTHE: the queries.
    whole: each device gets all tokens of its lanes.
  """
  lanes, over, heads, _ = spec_of(q_BTHE)
  over = None if whole else over
  return {"B": lanes, "T": over, "S": over, "H": heads, "K": heads}


def on_shards(f: Callable, axes: Axes, out: Any, *, follow: bool = False, **arrays: Any) -> Any:
  """Calls `f` on every device with its shards of the arrays; without a mesh with the arrays.

  Args:
    f: written for one device.
    axes: the mesh axes of each letter.
    out: what `f` returns, the letters of each array ("BTHE"), or a tree of arrays
      whose names end in their letters.
    follow: JAX follows which values differ from device to device. A sum over devices then has
      a gradient that costs nothing. Kernels cannot be followed.
    **arrays: arrays, None, or trees of both. Each array is placed by the letters that end its name:
      its field in a tree, or else its argument.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return f(**arrays)
  specs = _specs(arrays, axes)
  arrays = jax.tree.map(jax.reshard, arrays, specs)
  on_one = lambda arrays: f(**arrays)
  out_specs = _specs(out, axes)
  return jax.shard_map(on_one, in_specs=(specs,), out_specs=out_specs, check_vma=follow)(arrays)


def _specs(tree: Any, axes: Axes) -> Any:
  """The tree with a spec for each leaf: an array, or a string of letters."""

  def one(path, leaf):
    letters = leaf if isinstance(leaf, str) else letters_of(path)
    return PartitionSpec(*map(axes.get, letters))

  return jax.tree_util.tree_map_with_path(one, tree)


def letters_of(path: Any) -> str:
  """The dimensions named by the last key of a tree path: 'DHE' for `.../w_q_DHE`."""
  key = path[-1]
  name = str(getattr(key, "key", getattr(key, "name", key)))
  _, _, suffix = name.rpartition("_")
  return suffix if suffix.isupper() else ""


def axis_names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The mesh axes of one dimension: an entry of a spec, as a tuple."""
  return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def axis_size(entry: str | tuple[str, ...] | None) -> int:
  """Devices along a mesh axis, or the product of several."""
  return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axis_names(entry))


def carry(step: Affine, start: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
  """The state before each device and after the last, of a recurrence over the devices of an axis.

  Args:
    step: this device's own factor and term. The factor is a scalar per head, or a matrix, which has
      one axis more.
    start: the state before the first device, the same on all.
    axis: of the mesh.

  Returns:
    `x_p = factor_{p-1} x_{p-1} + term_{p-1}` with `x_0 = start`, of this device p, and the last of
    them.
  """
  size, here = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
  if size <= GATHERED:
    steps = jax.lax.all_gather(step, axis)

    def body(x, p_step):
      p, step = p_step
      return (apply(step, x[0]), jnp.where(p == here, x[0], x[1])), None

    (last, before), _ = jax.lax.scan(body, (start, start), (jnp.arange(size), steps))
    return before, last

  # Hillis and Steele: after round r a device holds the product of the last 2^(r+1) steps.
  reach = 1
  while reach < size:
    pairs = [(p, p + reach) for p in range(size - reach)]
    earlier = jax.tree.map(lambda x: jax.lax.ppermute(x, axis, pairs), step)  # noqa: B023
    joined = compose(step, earlier)
    step = jax.tree.map(lambda new, old: jnp.where(here >= reach, new, old), joined, step)  # noqa: B023
    reach *= 2
  after = apply(step, start)
  moved = jax.lax.ppermute(after, axis, [(p, p + 1) for p in range(size - 1)])
  last = jax.lax.psum(jnp.where(here == size - 1, after, 0.0), axis)
  return jnp.where(here == 0, start, moved), last


def carried(kept: tuple, own: tuple, start: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
  """From states that each device computed alone, from 0, to those of the whole sequence.

  Args:
    kept: what is left of a state that comes in (a scalar per head or a matrix), before each of the
      device's segments (axis 1), and after the last.
    own: the device's own states, at the same positions.
    start: the state before the first device, the same on all.
    axis: the mesh axis over which the sequence is divided.

  Returns:
    The states before the device's segments, and the state after the whole sequence.
  """
  here, last = carry((kept[1], own[1]), start, axis)
  before = jax.vmap(lambda *step: apply(step, here), 1, 1)(kept[0], own[0])
  return before, last


def apply(step: Affine, x: jax.Array) -> jax.Array:
  """`factor x + term`. The factor is a scalar per head, or a matrix."""
  factor, term = step
  if factor.ndim == x.ndim:
    return jnp.matmul(factor, x, precision="highest") + term
  return factor.reshape(*factor.shape, *(1,) * (x.ndim - factor.ndim)) * x + term


def compose(later: Affine, earlier: Affine) -> Affine:
  """First `earlier`, then `later`."""
  if later[0].ndim == later[1].ndim:
    factor = jnp.matmul(later[0], earlier[0], precision="highest")
  else:
    factor = later[0] * earlier[0]
  return factor, apply(later, earlier[1])
