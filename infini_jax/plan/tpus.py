"""TPUs that are not there: devices of a topology, for compilation only, by libtpu."""

import importlib.metadata
import importlib.util
import os
from typing import Any

import jax
from packaging.requirements import Requirement

from infini_jax.config import InputError

# Without these, libtpu searches for a TPU host, prints warnings if there is none, and takes a lock.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5e-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TF_CPP_MIN_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

REMEDY = "pip install -e '.[tpu]' takes that one, or give --no-compile for the estimate alone"


def tpu_devices(topology: str, slices: int = 1) -> list[Any]:
  """Devices, for compilation only, of `slices` slices of a TPU topology such as 'v5p:4x4x4'.

  Raises:
    InputError: libtpu is not installed, is not the version for jax, or has no such topology.
  """
  check_libtpu(topology)
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  chip, _, shape = topology.partition(":")
  sides = [int(side) for side in shape.split("x")]
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if chip == "v4":
    options["chip_config_name"] = "megacore"  # one device for each chip, as on real v4 machines
  if any(side < 2 for side in sides[:2]):  # a part of a host; a whole host has 2 x 2
    options["chips_per_host_bounds"] = [*sides, 1][:3]
  try:
    return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
  except Exception as error:  # reports libtpu's message in one line
    said = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
    raise InputError(
      f"--topology={topology}: libtpu has no such topology ({said[:160]}); {versions()}; give "
      f"--no-compile for the estimate alone"
    ) from None


def check_libtpu(topology: str) -> None:
  """Checks that libtpu is installed in a version that this jax requires; jax reads no other.

  Raises:
    InputError: it is missing, or has another version.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"--topology={topology}: compiling for TPUs needs libtpu: pip install -e '.[tpu]', or "
      f"give --no-compile for the estimate alone"
    )
  installed, wanted = _installed(), _wanted()
  if installed and wanted and not wanted.specifier.contains(installed, prereleases=True):
    raise InputError(f"--topology={topology}: {versions()}; {REMEDY}")


def versions() -> str:
  """The version of libtpu, and that for which jax is made."""
  wanted = _wanted()
  return (
    f"libtpu {_installed() or 'of unknown version'} is installed, and jax {jax.__version__} is "
    f"made for {wanted.name + str(wanted.specifier) if wanted else 'another'}"
  )


def _installed() -> str:
  """The version of libtpu; empty if its package has no metadata."""
  try:
    return importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    return ""


def _wanted() -> Requirement | None:
  """The requirement for libtpu in jax's extra `tpu`; None: there is none."""
  named = map(Requirement, importlib.metadata.requires("jax") or ())
  return next((requirement for requirement in named if requirement.name == "libtpu"), None)
