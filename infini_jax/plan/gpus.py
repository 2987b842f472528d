"""GPUs that are not there: devices of one or more hosts, for compilation only, by JAX's plugin.

XLA compiles for a description of a GPU. It needs no driver: NVIDIA's compiler comes with the extra
`gpu-plan`. cuDNN itself is not needed either, because XLA only writes calls of it into the program.
So the bytes that cuDNN uses as a workspace are not part of the plan.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from infini_jax.config import InputError
from infini_jax.parallel.chips import CHIPS

PLUGIN = "jax_cuda13_plugin"
KIB = 1024
CUDA, CUDNN = (13, 0, 0), (9, 12, 0)  # versions for which XLA chooses its operations


@dataclasses.dataclass(frozen=True)
class Facts:
  """What XLA reads of a GPU beyond `parallel.chips`.

  Attributes:
    capability: the CUDA compute capability.
    cores: streaming multiprocessors.
    units: float32 units of a multiprocessor.
    l2: bytes of the cache of all multiprocessors together.
    shared: bytes of the fast memory of a multiprocessor.
    clock: the boost clock in GHz.
    products: bfloat16 multiply-adds of a tensor core in a clock.
    own: whether the architecture has instructions that later ones lack (the "a" of sm_90a).
  """

  capability: tuple[int, int]
  cores: int
  units: int
  l2: int
  shared: int
  clock: float
  products: int
  own: bool


# NVIDIA's architecture white papers (A100, H100) and data sheets of the SXM modules (H200, B200),
# and the CUDA C++ Programming Guide's table of compute capabilities, read in November 2026.
FACTS = {
  "a100": Facts((8, 0), 108, 64, 40960 * KIB, 164 * KIB, 1.41, 256, False),
  "h100": Facts((9, 0), 132, 128, 51200 * KIB, 228 * KIB, 1.98, 512, True),
  "h200": Facts((9, 0), 132, 128, 51200 * KIB, 228 * KIB, 1.98, 512, True),
  "b200": Facts((10, 0), 148, 128, 126 * KIB * KIB, 228 * KIB, 1.965, 1024, True),
}


def gpu_devices(topology: str) -> list[Any]:
  """Devices, for compilation only, of a topology such as 'h200:8' or 'h100:4x8' (hosts x GPUs).

  Raises:
    InputError: the plugin is not installed, is not the version for jax, or refuses the topology.
  """
  check_plugin(topology)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from jax.experimental import topologies

  name, _, shape = topology.partition(":")
  hosts, gpus = ([1, *map(int, shape.split("x"))])[-2:]
  try:
    made = topologies.get_topology_desc(
      platform="cuda", target_config=description(name), topology=f"{hosts}x1x{gpus}"
    )
    return list(made.devices)
  except Exception as error:  # reports the plugin's message in one line
    said = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
    raise InputError(
      f"--topology={topology}: JAX's plugin for CUDA cannot compile for it ({said[:160]}); give "
      f"--no-compile for the estimate alone"
    ) from None


@contextlib.contextmanager
def cudnn_of(devices: list[Any]) -> Iterator[None]:
  """While a step is traced: JAX's checks of cuDNN read these devices, if they are GPUs.

  JAX has no public way to name the version of cuDNN and the GPU that a program is for: it asks the
  library and the GPU of this machine.
  """
  if devices[0].platform not in ("gpu", "cuda"):
    yield
    return
  from jax._src.cudnn import fused_attention_stablehlo as checks

  have = FACTS[next(name for name in FACTS if devices[0].device_kind.startswith(CHIPS[name].kinds))]
  number = lambda text: tuple(map(int, text.split(".")))
  version = CUDNN[0] * 10_000 + CUDNN[1] * 100 + CUDNN[2]
  with mock.patch.multiple(
    checks,
    check_cudnn_version=lambda: version,
    check_compute_capability=lambda wanted: have.capability >= number(wanted),
    is_cuda_compute_capability_equal=lambda wanted: have.capability == number(wanted),
  ):
    yield


def check_plugin(topology: str) -> None:
  """Checks that JAX's plugin for CUDA is installed, in the version of jax.

  Raises:
    InputError: it is missing, or has another version.
  """
  remedy = "pip install -e '.[gpu-plan]', or give --no-compile for the estimate alone"
  if importlib.util.find_spec(PLUGIN) is None:
    raise InputError(f"--topology={topology}: compiling for GPUs needs {PLUGIN}: {remedy}")
  try:
    installed = importlib.metadata.version(PLUGIN)
  except importlib.metadata.PackageNotFoundError:
    return
  if installed != jax.__version__:
    raise InputError(
      f"--topology={topology}: {PLUGIN} {installed} is installed, and jax is {jax.__version__}; "
      f"{remedy}"
    )


def description(name: str) -> str:
  """The GPU as the text of XLA's message `GpuTargetConfigProto`."""
  chip, facts = CHIPS[name], FACTS[name]
  major, minor = facts.capability
  triple = lambda v: "major: {} minor: {} patch: {}".format(*v)
  dotted = lambda v: ".".join(map(str, v))
  kind = f"{chip.kinds[0]} {round(chip.memory / 1e9)}GB"
  own = "ACCELERATED_FEATURES" if facts.own else "NONE"
  return f"""
gpu_device_info {{
  name: "{kind}"
  model_str: "sm_{major}{minor}{"a" * facts.own}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}{"a" * facts.own}"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {own} }}
  core_count: {facts.cores}
  fpus_per_core: {facts.units}
  clock_rate_ghz: {facts.clock}
  device_memory_size: {chip.memory}
  memory_bandwidth: {int(chip.memory_rate)}
  l2_cache_size: {facts.l2}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {facts.shared - KIB}
  shared_memory_per_core: {facts.shared}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  device_address_bits: 64
  ecc_enabled: true
  scalar_unit_description {{ {_scalar_rates(facts)} }}
  matrix_unit_description {{ {_matrix_rates(facts)} }}
  driver_version: "{dotted(CUDA)}"
  runtime_version: "{dotted(CUDA)}"
  compile_time_toolkit_version: "{dotted(CUDA)}"
  dnn_version: "{dotted(CUDNN)}"
  device_interconnect_info {{ active_links: {18 if major >= 9 else 12} }}
}}
platform_name: "CUDA"
dnn_version_info {{ {triple(CUDNN)} }}
runtime_version {{ {triple(CUDA)} }}
device_description_str: "{kind}"
"""


# XLA's numbers of types: s8 2, s32 4, u8 6, u32 8, f16 10, f32 11, f64 12, bf16 16.
def _scalar_rates(facts: Facts) -> str:
  rates = {4: 0.5, 8: 0.5, 10: 1, 11: 1, 12: 0.5, 16: 1}
  return " ".join(
    _rate(key, facts.clock, int(facts.units * share), 1) for key, share in rates.items()
  )


def _matrix_rates(facts: Facts) -> str:
  rates = {2: 2, 6: 2, 10: 1, 11: 0.5, 16: 1}
  return " ".join(
    _rate(key, facts.clock, 4, int(facts.products * share)) for key, share in rates.items()
  )


def _rate(key: int, clock: float, units: int, operations: int) -> str:
  value = f"clock_rate_ghz: {clock} units_per_core: {units} ops_per_clock: {operations}"
  return f"rate_infos {{ key: {key} value {{ {value} }} }}"
