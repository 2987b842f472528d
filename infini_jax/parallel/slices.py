"""The possible numbers of chips that are used together: TPU slices and GPU hosts.

TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} and the list of topologies of Google Kubernetes
Engine, read in November 2026. libtpu also compiles for many shapes that are not offered.
"""

import functools
import itertools
import math
from collections.abc import Mapping

from infini_jax.parallel.chips import Chip

Shape = tuple[int, ...]

PLANE = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
ONE_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))
HOST_PARTS = ((1, 1, 1), (1, 2, 1), (2, 1, 1))  # machines of Compute Engine with 1 or 2 chips
LARGEST = {"v4": 12 * 16 * 16, "v5p": 16 * 16 * 24}  # chips of the largest slice


@functools.cache
def slices(name: str) -> tuple[Shape, ...]:
  """The shapes of the slices of a TPU, such as (2, 2, 1), smallest first.

  Above one cube of 64 chips, v4 and v5p have all shapes (A, B, C) of multiples of 4 with
  A <= B <= C, up to their largest slice.
  """
  if name not in LARGEST:
    return PLANE
  cubes = LARGEST[name] // 64
  multiples = itertools.combinations_with_replacement(range(1, cubes + 1), 3)
  larger = [(4 * a, 4 * b, 4 * c) for a, b, c in multiples if 1 < a * b * c <= cubes]
  parts = HOST_PARTS if name == "v5p" else ()
  return tuple(sorted((*parts, *ONE_CUBE, *larger), key=lambda shape: (math.prod(shape), shape)))


def together(chip: Chip, sizes: Mapping[str, int]) -> int:
  """The devices of a mesh of these sizes in one TPU slice; for GPUs, all devices."""
  count = math.prod(sizes.values())
  return count // sizes["dcn"] if chip.platform == "tpu" else count


def is_size(chip: Chip, count: int) -> bool:
  """Whether a TPU slice has `count` chips; for GPUs, whether they fit one host or fill hosts."""
  if chip.platform == "gpu":
    return count <= chip.island or count % chip.island == 0
  return any(math.prod(shape) == count for shape in slices(chip.name))


def nearest_hosts(chip: Chip, shape: Shape) -> str:
  """The topologies of GPUs that are nearest to a wrong one, as text; empty if it is right.

  Args:
    chip: the GPU.
    shape: (8,) is one host, or a part of it; (2, 8) is two hosts.
  """
  count = math.prod(shape)
  if shape == (count,) and count <= chip.island:
    return ""
  if len(shape) == 2 and shape[1] == chip.island:
    return ""
  if count <= chip.island:
    return f"{chip.name}:{count}"
  whole = count // chip.island
  sizes = (whole,) if count % chip.island == 0 else (whole, whole + 1)
  names = [str(chip.island) if n == 1 else f"{n}x{chip.island}" for n in sizes]
  return " or ".join(f"{chip.name}:{name}" for name in names)


def nearest(chip: Chip, shape: Shape, most: int = 3) -> list[str]:
  """The existing slices, or numbers of GPUs, that are nearest to one that does not exist, as text.

  Args:
    chip: the chip.
    shape: the shape of a slice that does not exist, or the number of chips as a tuple of one.
    most: the largest number of results.
  """
  count = math.prod(shape)
  if chip.platform == "gpu":
    whole = count // chip.island * chip.island
    return [str(whole), str(whole + chip.island)]

  def distance(other: Shape) -> tuple[float, list[float]]:
    sides = itertools.zip_longest(sorted(shape, reverse=True), sorted(other, reverse=True))
    return (
      abs(math.log(math.prod(other) / count)),
      [abs(math.log((b or 1) / (a or 1))) for a, b in sides],
    )

  found = sorted(slices(chip.name), key=distance)
  if math.prod(found[0]) == count:  # returns only slices with as many chips, if there are any
    found = [other for other in found if math.prod(other) == count]
  return ["x".join(map(str, other)) for other in found[:most]]
