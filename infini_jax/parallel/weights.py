"""Products with weights that are divided over devices.

The collectives are explicit, inside `shard_map`. Without this, XLA reduces whole gradients and then
divides them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.ops.products import einsum
from infini_jax.parallel.mesh import COMPUTE, STORAGE, axes_of, in_mesh, spec


def product(equation: str, x: jax.Array, weight: jax.Array, **options: Any) -> jax.Array:
  """`jnp.einsum(equation, x, weight)` in x's type, for a stored weight.

  The weight is cast, and gathered over one mesh axis after another. Its gradient is scattered back
  and summed over the same axes, so no device receives the whole gradient. If a contracted dimension
  is divided, the partial sums are summed over its devices.

  Args:
    equation: in dimension letters, such as "BTD,DHE->BTHE"; they give the sharding of all arrays.
    x: an array with the sharding of activations (`COMPUTE`).
    weight: an array with the sharding of parameters (`STORAGE`).
    options: further arguments of `jnp.einsum`.
  """
  weight = weight.astype(x.dtype)
  if not in_mesh():
    return einsum(equation, x, weight, **options)
  ins, out = equation.split("->")
  rows, columns = ins.split(",")
  specs = (spec(rows, COMPUTE), spec(columns, STORAGE))
  gathered = {d: axes_of(STORAGE, c) for d, c in enumerate(columns) if c not in COMPUTE}
  summed = [a for c in columns if c not in out for a in axes_of(COMPUTE, c)]
  # Marks the weight as varying over the devices that have other tokens. So its gradients are summed
  # over them last, as shards.
  copies = [a for c in rows for a in axes_of(COMPUTE, c) if a not in _axes(columns)]

  def on_one(x, weight):
    weight = jax.lax.pcast(weight, tuple(copies), to="varying")
    for dimension, axes in gathered.items():
      for axis in reversed(axes):
        weight = jax.lax.all_gather(weight, axis, axis=dimension, tiled=True)
    y = einsum(equation, x, weight, **options)
    return jax.lax.psum(y, summed) if summed else y

  placed = map(jax.reshard, (x, weight), specs)
  return jax.shard_map(on_one, in_specs=specs, out_specs=spec(out, COMPUTE))(*placed)


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
  """`table_VD[tokens_BT]` of shape BTD in `dtype`, with the sharding of activations.

  The table and its gradient are not moved. Token ids are gathered instead. Every device looks up
  its own rows and columns for all of them, and an all-to-all exchanges the pieces. So the data that
  is sent has the size of the activations, not of the vocabulary.
  """
  if not in_mesh():
    return table_VD.astype(dtype)[tokens_BT]
  mesh = jax.sharding.get_abstract_mesh()
  # Each mesh axis of D also divides B (0) or T (1). The all-to-all exchanges D for that dimension.
  traded = {axis: 0 if axis in COMPUTE["B"] else 1 for axis in STORAGE["D"]}
  rows = COMPUTE["V"]

  def on_one(table_VD, tokens_BT):
    for axis, dimension in traded.items():
      tokens_BT = jax.lax.all_gather(tokens_BT, axis, axis=dimension, tiled=True)
    if mesh.shape[rows] > 1:
      tokens_BT -= jax.lax.axis_index(rows) * table_VD.shape[0]
    here_BT = (0 <= tokens_BT) & (tokens_BT < table_VD.shape[0])
    x_BTD = table_VD.astype(dtype)[jnp.where(here_BT, tokens_BT, 0)]
    if mesh.shape[rows] > 1:
      x_BTD = jax.lax.psum(jnp.where(here_BT[..., None], x_BTD, 0), rows)
    for axis, dimension in reversed(traded.items()):
      x_BTD = jax.lax.all_to_all(x_BTD, axis, dimension, 2, tiled=True)
    return x_BTD

  shardings = (spec("VD", STORAGE), spec("BT", COMPUTE))
  placed = map(jax.reshard, (table_VD, tokens_BT), shardings)
  run = jax.shard_map(on_one, in_specs=shardings, out_specs=spec("BTI", COMPUTE), check_vma=False)
  return run(*placed)


def _axes(letters: str) -> list[str]:
  """The mesh axes over which a weight is stored."""
  return [axis for letter in letters for axis in axes_of(STORAGE, letter)]
