"""Rows of a table whose columns lie on other devices than the tokens that ask for them."""

import jax
import jax.numpy as jnp

from infini_jax.parallel.mesh import COMPUTE, STORAGE, in_mesh, spec


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
  """`table_VD[tokens_BT]` in `dtype`, laid out as activations are.

  The table and its gradient stay where they are stored. Token numbers are gathered instead, every
  device looks its own rows and columns up for all of them, and the pieces change places
  (all-to-all): what is sent is the size of the activations, not of the vocabulary.
  """
  if not in_mesh():
    return table_VD.astype(dtype)[tokens_BT]
  mesh = jax.sharding.get_abstract_mesh()
  # Along a column axis lanes (B) or tokens (T) are divided: the dimension that it is traded for.
  traded = {axis: 0 if axis in COMPUTE["B"] else 1 for axis in STORAGE["D"]}
  rows = COMPUTE["V"]

  def piece(table_VD, tokens_BT):
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

  places = (spec("VD", STORAGE), spec("BT", COMPUTE))
  placed = map(jax.reshard, (table_VD, tokens_BT), places)
  run = jax.shard_map(piece, in_specs=places, out_specs=spec("BTE", COMPUTE), check_vma=False)
  return run(*placed)
