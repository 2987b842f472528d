"""What must be the same in every process of a run: compared at the start, before anything can hang.

Processes that differ in the learning rate train on to other losses without a word; processes that
differ in the number of steps wait for each other without end.
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

# What may differ from process to process, and why; all else of a command is compared.
MAY_DIFFER = {
  "--coordinator": "its name may be another on its own host",
  "--process": "the number of the process itself",
  "--config": "the file may lie elsewhere; its fields are compared, as they are in the end",
  "config.data.prefetch": "batches that a host holds in its memory: the same batches",
  "config.run.compilation_cache": "a folder of the host: the same programs",
}
NOT_TYPED = ("command", "run", "typed")  # what the parser's result holds beside flags
# XLA flags that do not change what a step computes: where it is written down, and a host's devices.
FREE_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")
# Settings of JAX that change what a step computes, or how devices join in it.
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
  """Makes sure that all processes were started alike. A process by itself is left alone.

  Args:
    args: the arguments of the command.
    config: as it is in the end.

  Raises:
    InputError: they were not; on every process, with the names and the values.
    PeerStopped: another has refused its own inputs.
  """
  if joined():
    facts = _command(args) | _fields(config) | _program(os.environ)
    agree({k: v for k, v in facts.items() if k not in MAY_DIFFER}, REMEDY)


def check_same_inputs(folder: Path, standing: str, sources: Iterable[Any]) -> None:
  """Makes sure that all processes see the same run, and read the same texts in the same tokens.

  Args:
    folder: the workdir.
    standing: what this process sees there.
    sources: what it has opened.

  Raises:
    InputError: they do not; on every process.
    PeerStopped: another has refused its own inputs.
  """
  agree({str(folder): standing}, SHARED)
  facts = {}
  for number, source in enumerate(sources, 1):
    facts[f"the fingerprint of corpus {number}"] = source.fingerprint
    facts[f"the fingerprint of tokenizer {number}"] = source.tokenizer.fingerprint
  agree(facts, "let all hosts read the same config.data.path")


def _command(args: argparse.Namespace) -> dict[str, Any]:
  """What was typed, as it was understood."""
  flags = {f"--{k.replace('_', '-')}": v for k, v in vars(args).items() if k not in NOT_TYPED}
  return {
    "the command": args.command,
    **flags,
    "--workdir": Path(args.workdir).expanduser().absolute(),
  }


def _fields(config: Config) -> dict[str, Any]:
  """Every field of a config by its whole name."""
  return {
    f"config.{section}.{name}": repr(value)
    for section, fields in config.sections().items()
    for name, value in vars(fields).items()
  }


def _program(environ: Mapping[str, str]) -> dict[str, Any]:
  """The code that runs, its packages, and what in the environment changes the program."""
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
