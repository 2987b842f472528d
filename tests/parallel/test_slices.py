"""The slices that exist, and the nearest ones to slices that do not exist."""

import math

import pytest

from infini_jax.parallel.chips import CHIPS
from infini_jax.parallel.mesh import AXES
from infini_jax.parallel.slices import is_size, nearest, slices, together

TPUS = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]


@pytest.mark.parametrize(
  "chip, there, not_there",
  [
    ("v5e", [(1, 1), (2, 4), (16, 16)], [(4, 2), (2, 8), (16, 32), (4, 4, 16), (3, 3), (256,)]),
    ("v6e", [(2, 2), (8, 16)], [(2, 128), (1, 2), (32, 32), (16, 16, 1)]),
    ("v5p", [(2, 2, 1), (2, 4, 4), (4, 4, 12), (8, 8, 16), (16, 16, 24), (4, 4, 244)],
     [(4, 4), (2, 2, 8), (8, 4, 4), (4, 4, 6), (3, 3, 3), (16, 16, 32), (4, 4, 388)]),
    ("v4", [(2, 2, 1), (4, 4, 4), (12, 16, 16)], [(1, 1, 1), (16, 16, 16), (2, 2, 3)]),
  ],
)  # fmt: skip
def test_slices_of_a_chip(chip, there, not_there):
  assert [shape in slices(chip) for shape in there] == [True] * len(there)
  assert [shape in slices(chip) for shape in not_there] == [False] * len(not_there)


@pytest.mark.parametrize("name", TPUS)
def test_slices_are_named_once_and_grow(name):
  counts = [math.prod(shape) for shape in slices(name)]
  assert counts == sorted(counts)
  assert len(set(slices(name))) == len(counts)


def test_what_is_nearest_has_as_many_chips_if_it_can():
  assert nearest(CHIPS["v5e"], (4, 4, 16)) == ["16x16"]
  assert nearest(CHIPS["v5p"], (8, 4, 4)) == ["4x4x8"]
  assert nearest(CHIPS["v5p"], (4, 4, 16))[0] == "4x4x16", "of 256 chips, the most alike first"
  assert nearest(CHIPS["v5e"], (3,))[0] == "2x2"
  assert nearest(CHIPS["h200"], (12,)) == ["8", "16"]
  assert all(nearest(CHIPS["v4"], (10**6,)))


def test_a_size_is_of_one_slice_or_of_whole_hosts():
  sizes = {**dict.fromkeys(AXES, 1), "dcn": 3, "fsdp": 8}
  assert together(CHIPS["v5e"], sizes) == 8
  assert is_size(CHIPS["v5e"], 8)
  assert not is_size(CHIPS["v5e"], 24)
  assert together(CHIPS["h100"], sizes) == 24
  assert [n for n in range(1, 25) if is_size(CHIPS["h100"], n)] == [*range(1, 9), 16, 24]
