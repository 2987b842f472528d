"""Makes one array over the mesh from the batch rows (lanes) of each host."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from infini_jax.ops.shards import letters_of
from infini_jax.parallel.mesh import COMPUTE, spec


def local_rows(mesh: Mesh, lanes: int) -> np.ndarray:
  """The sorted numbers of the lanes that this host's devices hold. The host reads only these.

  They need not be contiguous: a TPU host holds a block of a torus.
  """
  sharding = NamedSharding(mesh, spec("B", COMPUTE))
  where = sharding.addressable_devices_indices_map((lanes,)).values()
  pieces = [np.arange(lanes)[index] for index in where if index is not None]
  return np.unique(np.concatenate(pieces))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, lanes: int) -> dict[str, jax.Array]:
  """Makes global arrays from this host's lanes, sharded by the letters in their names.

  Args:
    batch: arrays whose first dimension is this host's lanes, in the order of `local_rows`.
    mesh: the mesh.
    lanes: the number of lanes of all hosts together.
  """
  held = local_rows(mesh, lanes)

  def one(path: Any, rows: np.ndarray) -> jax.Array:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))

    def on_one(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(lanes)
      first = int(np.searchsorted(held, start))
      return rows[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback((lanes, *rows.shape[1:]), sharding, on_one)

  return jax.tree_util.tree_map_with_path(one, batch)


def abstract_batch(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes, types and shardings of a whole batch, for tracing without devices."""

  def one(path: Any, rows: np.ndarray) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))
    return jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(one, batch)
