"""The settings for joining other processes: from flags, environment variables, or the cluster."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from infini_jax.config import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to join the other processes. JAX finds the values that are None from the cluster."""

  coordinator: str | None = None  # HOST:PORT of process 0
  processes: int | None = None
  process: int | None = None
  local_devices: tuple[int, ...] | None = None
  peer_timeout: int = 60  # seconds of silence after which a process counts as dead
  join_timeout: int = 300  # seconds until all must have started


def settings(
  environ: Mapping[str, str],
  coordinator: str | None = None,
  processes: str | None = None,
  process: str | None = None,
) -> Settings | None:
  """The settings for starting this process; None for a single process.

  Flags have priority, then INFINI_COORDINATOR, INFINI_PROCESSES and INFINI_PROCESS, then a Slurm
  step or a slice of TPU hosts.

  Args:
    environ: the environment variables.
    coordinator: `--coordinator`, HOST:PORT of process 0.
    processes: `--processes`, the number of processes; "auto": from the cluster.
    process: `--process`, the number of this process, from 0.

  Raises:
    InputError: the settings are incomplete or wrong.
  """
  make = functools.partial(
    Settings,
    peer_timeout=_whole(environ, "INFINI_PEER_TIMEOUT", Settings.peer_timeout),
    join_timeout=_whole(environ, "INFINI_JOIN_TIMEOUT", Settings.join_timeout),
  )
  flags = {"coordinator": coordinator, "processes": processes, "process": process}
  given = {
    name: value or environ.get(f"INFINI_{name.upper()}") or None for name, value in flags.items()
  }
  if given == {"coordinator": None, "processes": "auto", "process": None}:
    return make()
  if any(given.values()):
    address, count, number = _explicit(given)
    return None if count == 1 else make(address, count, number)
  if _in_slurm_step(environ):
    return make(local_devices=_slurm_devices(environ))
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
  if "," in hosts or environ.get("MEGASCALE_NUM_SLICES", "1") != "1":
    return make()
  return None


def _explicit(given: dict[str, str | None]) -> tuple[str, int, int]:
  """The coordinator's address, the number of processes, and the number of this process.

  Raises:
    InputError: one of them is missing or wrong.
  """
  names = {name: f"--{name} or INFINI_{name.upper()}" for name in given}
  for name, value in given.items():
    if not value:
      there = next(f"--{other}={value}" for other, value in given.items() if value)
      raise InputError(
        f"{there} was given without {names[name]}: give --coordinator=HOST:PORT, --processes=COUNT "
        f"and --process=NUMBER together, or --processes=auto on a cluster that JAX supports"
      )
  address = str(given["coordinator"])
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise InputError(f"--coordinator={address}: give HOST:PORT of process 0, such as node0:8476")
  count = _whole(given, "processes", 0, "--processes=")
  number = _whole(given, "process", 0, "--process=", least=0)
  if number >= count:
    raise InputError(f"--process={number}: processes are numbered from 0 to {count - 1}")
  return address, count, number


def _whole(
  values: Mapping[str, Any], name: str, default: int, show: str = "", least: int = 1
) -> int:
  text = values.get(name) or str(default)
  if not text.isdigit() or int(text) < least:
    raise InputError(f"{show or name + '='}{text}: give a whole number from {least} on")
  return int(text)


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
  """Whether `srun` started this process as one of several. A batch script is a single process."""
  names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
  return all(name in environ for name in names) and environ.get("SLURM_NTASKS", "1") != "1"


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
  """All GPUs of the node, if it has one process: JAX would give it one GPU. Else None."""
  alone = environ.get("SLURM_STEP_NUM_NODES") == environ.get("SLURM_NTASKS")
  gpus = environ.get("SLURM_GPUS_ON_NODE", "")
  return tuple(range(int(gpus))) if alone and gpus.isdigit() else None
