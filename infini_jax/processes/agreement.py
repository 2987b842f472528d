"""Compares what must be the same in every process of a run, at the start, before one can hang.

Processes with different learning rates would train different parameters without an error. Processes
with different numbers of steps would wait for each other forever.
"""

import argparse
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

import infini_jax
from infini_jax.config import Config
from infini_jax.processes.service import joined
from infini_jax.processes.together import SHARED, agree

REMEDY = "start all processes with the same command, code and environment"

# What may differ between processes, and why. Everything else of a command is compared.
MAY_DIFFER = {
  "--coordinator": "its name may be another on its own host",
  "--process": "the number of the process itself",
  "--config": "the file may lie elsewhere; its fields are compared, as they are in the end",
  "config.data.prefetch": "batches that a host holds in its memory: the same batches",
  "config.data.patience": "how long a host waits for its file system: the same batches",
  "config.run.compilation_cache": "a folder of the host: the same programs",
}
NOT_TYPED = ("command", "run", "typed")  # entries of the parser's result that are not flags
# XLA flags that do not change what a step computes: dumps, and the number of a host's devices.
FREE_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")
# Settings of JAX that change what a step computes, or which devices compute it.
JAX_SETTINGS = (
  "jax_cpu_collectives_implementation",
  "jax_debug_nans",
  "jax_default_matmul_precision",
  "jax_default_prng_impl",
  "jax_disable_jit",
  "jax_enable_x64",
  "jax_numpy_dtype_promotion",
  "jax_platforms",
  "jax_random_seed_offset",
  "jax_threefry_partitionable",
  "jax_use_shardy_partitioner",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu")


def check_alike(args: argparse.Namespace, config: Config) -> None:
  """Checks that all processes were started alike. Does nothing in a single process.

  Args:
    args: the arguments of the command.
    config: the complete config.

  Raises:
    InputError: they were not; raised in every process, with the names and the values.
    PeerStopped: another process has refused its own inputs.
  """
  if joined():
    facts = _command(args) | _fields(config) | _program(os.environ)
    agree({k: v for k, v in facts.items() if k not in MAY_DIFFER}, REMEDY)


def check_same_inputs(folder: Path, standing: str, datasets: Iterable[Any]) -> None:
  """Checks that all processes see the same run, and read the same texts with the same tokenizer.

  Args:
    folder: the workdir.
    standing: a description of the run that this process sees there.
    datasets: the datasets that it has opened.

  Raises:
    InputError: they do not; raised in every process.
    PeerStopped: another has refused its own inputs.
  """
  agree({str(folder): standing}, SHARED)
  facts = {}
  for number, dataset in enumerate(datasets, 1):
    facts[f"the fingerprint of corpus {number}"] = dataset.fingerprint
    facts[f"the fingerprint of tokenizer {number}"] = dataset.tokenizer.fingerprint
  agree(facts, "let all hosts read the same config.data.path")


def _command(args: argparse.Namespace) -> dict[str, Any]:
  """The flags of the command, with an absolute workdir."""
  flags = {f"--{k.replace('_', '-')}": v for k, v in vars(args).items() if k not in NOT_TYPED}
  return {
    "the command": args.command,
    **flags,
    "--workdir": Path(args.workdir).expanduser().absolute(),
  }


def _fields(config: Config) -> dict[str, Any]:
  """Every field of a config by its full name."""
  return {
    f"config.{section}.{name}": repr(value)
    for section, fields in config.sections().items()
    for name, value in vars(fields).items()
  }


def _program(environ: Mapping[str, str]) -> dict[str, Any]:
  """Versions of code and packages, and the settings of the environment that change the program."""
  flags = sorted(f for f in environ.get("XLA_FLAGS", "").split() if not f.startswith(FREE_FLAGS))
  return {
    "the version of Python": platform.python_version(),
    **{f"the version of {name}": _version(name) for name in PACKAGES},
    "the code of infini_jax": _digest(Path(infini_jax.__file__).parent),
    "XLA_FLAGS": " ".join(flags),
    "LIBTPU_INIT_ARGS": environ.get("LIBTPU_INIT_ARGS", ""),
    **{name.upper(): jax.config.values[name] for name in JAX_SETTINGS if name in jax.config.values},
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "none"


def _digest(folder: Path) -> str:
  """A short hash of all Python files in a folder."""
  hasher = hashlib.blake2b(digest_size=8)
  for file in sorted(folder.rglob("*.py")):
    hasher.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
  return hasher.hexdigest()
