"""Batches from each host's own rows to one array over the mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from infini_jax.ops.shards import letters_of
from infini_jax.parallel.mesh import COMPUTE, spec


def local_rows(mesh: Mesh, lanes: int) -> np.ndarray:
  """The lanes that this host's devices hold, in order, and so the only ones it reads.

  They need not lie side by side: a host of a TPU holds a block of a torus.
  """
  sharding = NamedSharding(mesh, spec("B", COMPUTE))
  where = sharding.addressable_devices_indices_map((lanes,)).values()
  pieces = [np.arange(lanes)[index] for index in where if index is not None]
  return np.unique(np.concatenate(pieces))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, lanes: int) -> dict[str, jax.Array]:
  """Places this host's rows; arrays are laid out by the letters in their names."""
  held = local_rows(mesh, lanes)

  def one(path: Any, rows: np.ndarray) -> jax.Array:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))

    def piece(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(lanes)
      first = int(np.searchsorted(held, start))
      return rows[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback((lanes, *rows.shape[1:]), sharding, piece)

  return jax.tree_util.tree_map_with_path(one, batch)


def abstract_batch(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and places of a whole batch, for a trace without devices."""

  def one(path: Any, rows: np.ndarray) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))
    return jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(one, batch)
