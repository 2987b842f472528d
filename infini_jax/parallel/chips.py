"""The chips that can be planned for, with figures from their data sheets."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device, as JAX counts them.

  Attributes:
    name: its name in `--chip` and before the colon of a topology.
    kinds: JAX's `device_kind`, or the beginnings of it.
    platform: 'tpu' or 'gpu'.
    peak: dense bfloat16 FLOP/s.
    memory: bytes of HBM.
    memory_rate: bytes/s of HBM.
    link_rate: bytes/s that a chip sends to others of its island, over all its links together. A
      collective that uses only some links (one axis of a torus) is slower: this is an upper bound.
    network_rate: bytes/s that a chip sends over the data-center network.
    island: chips that are connected by links; 0: all chips of a slice.
  """

  name: str
  kinds: tuple[str, ...]
  platform: str
  peak: float
  memory: int
  memory_rate: float
  link_rate: float
  network_rate: float
  island: int = 0


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. The bandwidth between
# chips is given there for both directions (1,200 GB/s for v5p); half of it is the sending rate. The
# network rate is per chip (v5p 50 Gbit/s), or the rate of a pod divided by its chips; v4's is not
# given, and v5p's is used. GPUs: NVIDIA's data sheets of the SXM modules (A100 80GB to B200);
# NVLink is given for both directions too; one 200 or 400 Gbit/s port per GPU, as in DGX.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", ("TPU v4",), "tpu", 275e12, 32 * GIB, 1.2e12, 300e9, 6.25e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), "tpu", 197e12, 16 * GIB, 819e9, 200e9, 3.125e9),
    Chip("v5p", ("TPU v5p", "TPU v5"), "tpu", 459e12, 95 * GIB, 2.765e12, 600e9, 6.25e9),
    Chip("v6e", ("TPU v6",), "tpu", 918e12, 32 * GIB, 1.6e12, 400e9, 12.5e9),
    Chip("a100", ("NVIDIA A100",), "gpu", 312e12, int(80e9), 2.039e12, 300e9, 25e9, 8),
    Chip("h100", ("NVIDIA H100",), "gpu", 989e12, int(80e9), 3.35e12, 450e9, 50e9, 8),
    Chip("h200", ("NVIDIA H200",), "gpu", 989e12, int(141e9), 4.8e12, 450e9, 50e9, 8),
    Chip("b200", ("NVIDIA B200",), "gpu", 2250e12, int(180e9), 7.7e12, 900e9, 50e9, 8),
  )
}


def chip_of(device_kind: str) -> Chip | None:
  """The chip of a `device_kind`, or None if it is not known (such as a CPU)."""
  known = (chip for chip in CHIPS.values() if device_kind.startswith(chip.kinds))
  return next(known, None)


def peak_flops(device_kind: str) -> float | None:
  """Its peak FLOP/s in bfloat16."""
  chip = chip_of(device_kind)
  return None if chip is None else chip.peak
