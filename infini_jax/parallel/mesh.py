"""One mesh with explicit axes, and one table from dimension letters to these axes.

An array is sharded by the letters in its name: `w_q_DHE` is stored with D divided over `fsdp` and
`seq`, and H over `tensor`. A parameter is gathered over `fsdp` and `seq` where it is used
(`weights.product`), and its gradient is scattered back. Without a mesh, the functions here change
no layout, so the same model code runs in a notebook and on a pod.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from infini_jax.config import Config, InputError, MeshConfig
from infini_jax.ops.shards import letters_of

AXES = ("dcn", "data", "fsdp", "seq", "tensor")

# Letter -> mesh axes of activations and states. A letter that is not here is never divided.
COMPUTE: dict[str, Any] = {
  "B": ("dcn", "data", "fsdp"),
  "T": "seq",
  "S": "seq",
  "H": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
}
# Letter -> mesh axes of stored parameters, optimizer moments and gradients.
STORAGE: dict[str, Any] = {**COMPUTE, "D": ("fsdp", "seq")}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """The mesh `dcn x data x fsdp x seq x tensor` over `devices` (all of them by default).

  `dcn` goes over devices that only a data-center network connects: TPU slices, or GPU hosts. All
  other axes stay inside a slice or a host.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  if sizes[0] > 1 and len({_island(d) for d in devices}) > 1:
    islands = len({_island(d) for d in devices})
    if sizes[0] % islands:
      raise InputError(
        f"config.mesh.dcn={sizes[0]}: the devices form {islands} slices or hosts; make it a "
        f"multiple of {islands}, or 1 to divide them by the other axes"
      )
    by_process = getattr(devices[0], "slice_index", None) is None
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // islands, *sizes[1:]),
      (islands, 1, 1, 1, 1),
      devices,
      process_is_granule=by_process,
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
  """The sizes of the axes, in the order of `AXES`.

  Raises:
    InputError: their product is not the number of devices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  if config.data == -1:
    sizes[AXES.index("data")] = devices // -math.prod(sizes)
  if math.prod(sizes) != devices:
    given = " ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
    raise InputError(
      f"config.mesh {given} does not fit {devices} devices: the product must be {devices} "
      f"(data=-1 takes what is left)"
    )
  return tuple(sizes)


def check_divisible(config: Config, mesh: Mesh) -> None:
  """Raises InputError for the first size that its mesh axes do not divide."""
  m, microbatch = config.model, config.data.lanes // config.train.accumulate
  lanes = "config.data.lanes / config.train.accumulate"
  for letter, name, size, table in (
    ("B", lanes, microbatch, COMPUTE),
    ("B", "config.evaluation.lanes", config.evaluation.lanes, COMPUTE),
    ("S", "config.data.segments", config.data.segments, COMPUTE),
    ("S", "config.evaluation.segments", config.evaluation.segments, COMPUTE),
    *((("S", "config.warm.segments", config.warm.segments, COMPUTE),) * bool(config.warm.share)),
    ("H", "config.model.heads", m.heads, COMPUTE),
    ("K", "config.model.kv_heads", m.kv_heads, COMPUTE),
    ("F", "config.model.ffn", m.ffn, COMPUTE),
    ("V", "config.model.vocab_size", m.vocab_size, COMPUTE),
    ("D", "config.model.width", m.width, STORAGE),
  ):
    axes = axes_of(table, letter)
    parts = math.prod(mesh.shape[a] for a in axes)
    if size % parts:
      raise InputError(
        f"{name}={size} is divided over mesh axes {'*'.join(axes)}={parts} and is not a multiple: "
        f"make it {-(-size // parts) * parts}, or the axes smaller"
      )


def axes_of(table: dict[str, Any], letter: str) -> tuple[str, ...]:
  """The mesh axes of a letter, as a tuple."""
  axes = table.get(letter) or ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def spec(letters: str, table: dict[str, Any]) -> PartitionSpec:
  """The sharding of an array with these dimensions.

  Raises:
    ValueError: two dimensions are divided over the same mesh axis.
  """
  parts = [table.get(letter) for letter in letters]
  axes = [a for p in parts if p for a in (p if isinstance(p, tuple) else (p,))]
  if len(set(axes)) != len(axes):
    raise ValueError(f"two dimensions of {letters} are divided over the same mesh axis: {parts}")
  return PartitionSpec(*parts)


def shard(x: jax.Array, letters: str) -> jax.Array:
  """Reshards an activation or a state by its letters. Without a mesh, returns it unchanged."""
  return jax.reshard(x, spec(letters, COMPUTE)) if in_mesh() else x


def zeros(shape: tuple[int, ...], letters: str, dtype: Any) -> jax.Array:
  """Zeros, sharded by their letters."""
  sharding = spec(letters, COMPUTE) if in_mesh() else None
  return jnp.zeros(shape, dtype, out_sharding=sharding)


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """The storage sharding of every leaf, from the capital letters at the end of its name.

  `params` is a tree of parameters, or of other arrays with the same names. A leaf with one more
  dimension than letters has a first dimension L. A leaf whose dimensions do not fit its name is
  replicated.
  """

  def one(path, leaf):
    letters = letters_of(path)
    stacked = "L" * (len(leaf.shape) - len(letters))
    known = letters and len(stacked) <= 1
    return NamedSharding(mesh, spec(stacked + letters if known else "", STORAGE))

  return jax.tree_util.tree_map_with_path(one, params)


def _island(device: Any) -> int:
  """The TPU slice that a device belongs to; for other devices, the host."""
  slice_index = getattr(device, "slice_index", None)
  return device.process_index if slice_index is None else slice_index


def in_mesh() -> bool:
  """Whether a mesh is set. False inside `shard_map`, where arrays belong to one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return not (mesh.empty or mesh.are_all_axes_manual)
