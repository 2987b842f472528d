"""The lanes of a host."""

import numpy as np
import pytest

from infini_jax.config import MeshConfig
from infini_jax.parallel import hosts, local_rows, make_mesh, put_batch


@pytest.mark.parametrize(
  "pieces,expected",
  [
    ([(0, 2), (2, 4)], [0, 1, 2, 3]),
    ([(6, 8), (2, 4)], [2, 3, 6, 7]),  # a block of a torus
    ([(4, 6), (4, 6)], [4, 5]),  # two devices along another axis
    ([(None, None)], list(range(8))),
  ],
  ids=str,
)
def test_a_host_reads_the_lanes_of_its_devices(pieces, expected, monkeypatch, rng):
  """And no others, also if its lanes are not contiguous."""
  mesh = make_mesh(MeshConfig(data=-1))

  class Fake:  # the view of one host on a mesh of many hosts
    def __init__(self, *args):
      pass

    def addressable_devices_indices_map(self, shape):
      return {i: (slice(*piece),) for i, piece in enumerate(pieces)}

  monkeypatch.setattr(hosts, "NamedSharding", Fake)
  rows = local_rows(mesh, 8)
  assert rows.tolist() == expected
  asked = {}
  monkeypatch.setattr(
    hosts.jax,
    "make_array_from_callback",
    lambda shape, sharding, piece: asked.update(
      {p: piece((slice(*p), slice(1, 3))) for p in pieces}
    ),
  )
  whole = rng.integers(0, 99, (8, 4))
  put_batch({"tokens_BT": whole[rows]}, mesh, 8)
  for piece in pieces:
    np.testing.assert_array_equal(asked[piece], whole[slice(*piece), 1:3])
