"""Muon (Jordan, 2024) for the matrices of the layers: each update is made orthogonal.

Its iteration needs whole matrices. The layers of a stack are therefore divided over the devices,
and each device computes the matrices of its own layers.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec
from optax.contrib import MuonDimensionNumbers

from infini_jax.ops.shards import letters_of
from infini_jax.parallel.mesh import in_mesh

# What goes in and what comes out: the width, the feed-forward, a rank, or all heads as one.
MATRIX = re.compile(r"([HK]E|[DFR])([HK]E|[DFR])")
RMS = 0.2  # of an update, about that of AdamW (Liu et al., arXiv 2502.16982)


def is_matrix(path: Any) -> bool:
  """Whether the parameter at a tree path is a matrix, by the letters of its name.

  Embeddings are none, and what makes one number for each head (the write gate).
  """
  return MATRIX.fullmatch(letters_of(path)) is not None


def muon(rate: optax.Schedule, momentum: float, weight_decay: float) -> Any:
  """The update of Optax's Muon, for parameters that are matrices with any axes in front.

  Args:
    rate: the learning rate; as for AdamW, because updates have the same size.
    momentum: of the gradients.
    weight_decay: scaled by the learning rate.
  """
  return _whole_layers(
    optax.contrib.muon(
      rate,
      beta=momentum,
      weight_decay=weight_decay,
      consistent_rms=RMS,
      muon_weight_dimension_numbers=dimensions,
    )
  )


def dimensions(params: Any) -> Any:
  """Which axes of each parameter go in, and which come out; the others are stacked matrices."""

  def one(path, _):
    ins, outs = MATRIX.fullmatch(letters_of(path)).groups()  # type: ignore[union-attr]
    axes = range(-len(ins) - len(outs), 0)
    return MuonDimensionNumbers(tuple(axes[: len(ins)]), tuple(axes[len(ins) :]))

  return jax.tree_util.tree_map_with_path(one, params)


def _whole_layers(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same on a mesh: every array is divided by its first axis, the layers, and not otherwise."""

  def update(updates, state, params=None):
    if not in_mesh():
      return tx.update(updates, state, params)
    given = (updates, state, params)
    by_layers = jax.tree.map(lambda x: _way(x)[-1], given)
    compute = jax.shard_map(tx.update, in_specs=by_layers, out_specs=by_layers[:2], check_vma=False)
    made = compute(*jax.tree.map(_to_layers, given))
    return jax.tree.map(_as_stored, made, given[:2])

  return optax.GradientTransformation(tx.init, update)


def divides_layers(layers: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes that divide a stack of matrices by its layers together."""
  axes: list[str] = []
  parts = 1
  for name, size in sizes.items():
    if size > 1 and layers % (parts * size) == 0:
      axes, parts = [*axes, name], parts * size
  return tuple(axes)


def _way(x: jax.Array) -> list[PartitionSpec]:
  """The layouts from the stored one to that by layers. Each step moves one mesh axis.

  A step is then one exchange. XLA copies the whole array to every device if several axes move at
  once. The last axis of a dimension moves first, because it divides neighbouring numbers.
  """
  stored = jax.typeof(x).sharding.spec
  if x.ndim < 3:  # a count
    return [stored, PartitionSpec()]
  sizes = jax.sharding.get_abstract_mesh().shape
  wide = {name for name, size in sizes.items() if size > 1}
  dividing = divides_layers(x.shape[0], sizes)
  named = [axes if isinstance(axes, tuple) else (axes,) for axes in stored]
  spec = [tuple(a for a in axes if a in wide) for axes in named] + [()] * (x.ndim - len(named))
  way = [stored]
  for axis in reversed([name for name in sizes if name in wide]):
    spec = [tuple(a for a in axes if a != axis) for axes in spec]
    if axis in dividing:
      spec[0] += (axis,)
    way.append(PartitionSpec(*(axes or None for axes in spec)))
  return way if way[1:] else [stored, PartitionSpec()]


def _to_layers(x: jax.Array) -> jax.Array:
  for spec in _way(x)[1:]:
    x = jax.reshard(x, spec)
  return x


def _as_stored(x: jax.Array, before: jax.Array) -> jax.Array:
  for spec in reversed(_way(before)[:-1]):
    x = jax.reshard(x, spec)
  return x
