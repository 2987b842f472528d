"""Batches from each host's own rows to one array over the mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from infini_jax.parallel.mesh import COMPUTE, letters_of, spec


def local_rows(mesh: Mesh, lanes: int) -> slice:
  """The lanes that this host's devices hold, and so the only ones it reads."""
  sharding = NamedSharding(mesh, spec("B", COMPUTE))
  where = sharding.addressable_devices_indices_map((lanes,)).values()
  pieces = [index[0] for index in where if index is not None]
  return slice(min(p.start or 0 for p in pieces), max(p.stop or lanes for p in pieces))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, lanes: int) -> dict[str, jax.Array]:
  """Places this host's rows; arrays are laid out by the letters in their names."""
  first = local_rows(mesh, lanes).start

  def one(path: Any, rows: np.ndarray) -> jax.Array:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))

    def piece(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(lanes)
      return rows[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback((lanes, *rows.shape[1:]), sharding, piece)

  return jax.tree_util.tree_map_with_path(one, batch)


def abstract_batch(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and places of a whole batch, for a trace without devices."""

  def one(path: Any, rows: np.ndarray) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec(letters_of(path), COMPUTE))
    return jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(one, batch)
