"""Many processes as one run: started from the environment, kept in step, ended together.

A single process is left alone: then nothing here touches JAX or waits. All processes run the same
program on the same inputs; what they must agree on beyond that goes through JAX's coordination
service, which lives in process 0, or over the devices.
"""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infini_jax.config import InputError

DAY_MS = 24 * 3600 * 1000  # a wait ends when a peer dies; this is only what the call asks for
TOGETHER_SECONDS = 10  # so long a process that fails waits for others that fail alike
SHOWS_SECONDS = 60  # so long a network file system may hide a new file from other hosts

# JAX ends a process that has lost its peers with a stack trace, past anything Python could do. This
# little process outlives it: it speaks when its pipe closes without the farewell.
SITTER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
if not os.read(0, 1):
  os.write(2, sys.argv[1].encode())
"""

_numbers = itertools.count()  # every process waits in the same order, so the names agree
_sitter: subprocess.Popen | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to join the other processes; None is what JAX finds out from the cluster itself."""

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
  """How this process is to be started; None for a process by itself.

  What is given as a flag counts first, then INFINI_COORDINATOR, INFINI_PROCESSES and
  INFINI_PROCESS, then a Slurm step or a slice of TPU hosts.

  Args:
    environ: the environment.
    coordinator: `--coordinator`, HOST:PORT of process 0.
    processes: `--processes`, how many; "auto" asks the cluster.
    process: `--process`, which of them, from 0.

  Raises:
    InputError: incomplete or wrong settings.
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


def start(how: Settings | None) -> bool:
  """Joins the other processes, before any device is touched. Returns whether there are any.

  Raises:
    InputError: the others cannot be reached.
  """
  if how is None:
    return False
  # JAX would take SIGTERM for itself: the loop asks all processes at every step instead.
  jax.config.update("jax_enable_preemption_service", False)
  who = "this process" if how.process is None else f"process {how.process} of {how.processes}"
  _seat_sitter(
    f"infini-jax: {who} was killed, or lost the others, or never found them (see above). Start "
    f"all of them with the same command: a run goes on from its newest checkpoint\n"
  )
  try:
    jax.distributed.initialize(
      how.coordinator,
      how.processes,
      how.process,
      local_device_ids=how.local_devices,
      cluster_detection_method="deactivate" if how.coordinator else None,
      initialization_timeout=how.join_timeout,
      heartbeat_timeout_seconds=how.peer_timeout,
    )
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    raise InputError(
      f"{who} cannot join the others at {how.coordinator or 'what the cluster says'} "
      f"({_first_line(error)}): start all of them, each with the address of process 0 as "
      f"--coordinator=HOST:PORT"
    ) from None
  return True


def process_index() -> int:
  """The number of this process, known before any device is."""
  return jax_distributed.global_state.process_id


def wait(name: str) -> None:
  """Returns when every process has come here."""
  if client := _client():
    client.wait_at_barrier(f"{name}-{next(_numbers)}", DAY_MS)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
  """Process 0 goes through the body first, the others when it is done: they find what it made.

  Also when it fails: then they meet the same failure, and all of them say so.
  """
  if process_index() > 0:
    wait(name)
  try:
    yield
  finally:
    if process_index() == 0:
      wait(name)


def check_shared(file: Path, seen: str) -> None:
  """Makes sure that all processes look at one folder: checkpoints are written by all of them.

  Args:
    file: what process 0 has just written.
    seen: what else this process sees in the folder.

  Raises:
    InputError: they do not see the same; on every process.
  """
  if not (client := _client()):
    return
  wait("written")
  deadline = time.monotonic() + SHOWS_SECONDS
  while not file.exists() and time.monotonic() < deadline:
    time.sleep(1)
  if not file.exists():
    seen = f"no {file.name}"
  key = f"seen-{next(_numbers)}/"
  client.key_value_set(f"{key}{process_index()}", seen)
  wait("seen")
  found = {name.rsplit("/", 1)[1]: value for name, value in client.key_value_dir_get(key)}
  for process, value in sorted(found.items()):
    if value != found["0"]:
      raise InputError(
        f"{file.parent}: process 0 sees {found['0']} there, process {process} sees {value}; "
        f"--workdir must be on a file system that all hosts share"
      )


class Anyone:
  """Whether any process raised its flag: the same answer everywhere, one call late.

  The flags are compared by the devices, behind the step before, so that no process ever waits for
  another. A single process gets its own flag back at once.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(jnp.any)
    self._size, self._before = mesh.size, None

  def __call__(self, flag: bool) -> bool:
    """Hands in this process's flag; returns what all handed in at the call before."""
    if jax.process_count() == 1:
      return flag
    mine = lambda index: np.full(len(range(self._size)[index[0]]), flag)
    flags = jax.make_array_from_callback((self._size,), self._sharding, mine)
    answer, self._before = self._before, self._any(flags)
    return answer is not None and bool(answer)


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Ends this process at once when the devices report that a peer is gone.

  Whatever would be tidied up on the way out would wait for the dead.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if _client() is None:
      raise
    give_up(1, lost(error), together=False)


def lost(error: BaseException) -> str:
  """One line about an error of the devices, or of the coordination service."""
  this = f"process {process_index()} of {jax_distributed.global_state.num_processes}"
  return (
    f"{this} stops: {_first_line(error)}; if another process ended, its own message says why. "
    f"The same command goes on from the newest checkpoint"
  )


def finish() -> None:
  """Returns when all processes have come to their end: no one leaves while another still writes."""
  wait("end")


def give_up(status: int, message: str = "", together: bool = True) -> NoReturn:
  """Ends this process with a failure, without the farewell that JAX would wait for.

  Args:
    status: of the exit.
    message: a line for standard error.
    together: first meet the others, which may have failed alike.
  """
  if message:
    print(f"infini-jax: {message}", file=sys.stderr)
  if together and (client := _client()):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.wait_at_barrier("failed", TOGETHER_SECONDS * 1000)
  if process_index() == 0:
    time.sleep(2)  # the service ends with this process: let the others say what they have seen
  sys.stdout.flush()
  sys.stderr.flush()
  _farewell()
  os._exit(status)


def _client() -> Any:
  return jax_distributed.global_state.client


def _seat_sitter(message: str) -> None:
  global _sitter
  command = [sys.executable, "-S", "-E", "-c", SITTER, message]
  _sitter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(_farewell)


def _farewell() -> None:
  if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
    with contextlib.suppress(OSError):
      _sitter.communicate(b".")


def _explicit(given: dict[str, str | None]) -> tuple[str, int, int]:
  """The coordinator, the number of processes and which this is.

  Raises:
    InputError: one of them is missing or wrong.
  """
  names = {name: f"--{name} or INFINI_{name.upper()}" for name in given}
  for name, value in given.items():
    if not value:
      there = next(f"--{other}={value}" for other, value in given.items() if value)
      raise InputError(
        f"{there} was given without {names[name]}: give --coordinator=HOST:PORT, --processes=N "
        f"and --process=I together, or --processes=auto on a cluster that JAX knows"
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
  """Whether `srun` started this process as one of several; a batch script by itself is alone."""
  names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
  return all(name in environ for name in names) and environ.get("SLURM_NTASKS", "1") != "1"


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
  """All GPUs of the node for its only process: JAX would give it one."""
  alone = environ.get("SLURM_STEP_NUM_NODES") == environ.get("SLURM_NTASKS")
  gpus = environ.get("SLURM_GPUS_ON_NODE", "")
  return tuple(range(int(gpus))) if alone and gpus.isdigit() else None


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
