"""Many processes as one run: started from the environment, kept in step, ended together.

A single process is left alone: then nothing here touches JAX or waits. All processes run the same
program on the same inputs; what they must agree on beyond that goes through JAX's coordination
service, which lives in process 0, or over the devices.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infini_jax.config import InputError
from infini_jax.parallel.joining import Settings

DAY_MS = 24 * 3600 * 1000  # a wait ends when a peer dies; this is only what the call asks for
TELL_SECONDS = 2  # a process that stops tries so long to tell the others why
TOGETHER_SECONDS = 10  # so long a process that fails waits for others that fail alike
SHOWS_SECONDS = 60  # so long a network file system may hide a new file from other hosts
POLL_SECONDS = 0.5  # so often a process that waits asks whether another has stopped
NAMED = 3  # differences that are named, at most
SHARED = "--workdir must be on a file system that all hosts share"
STOPPED = "stopped"  # the key under which the first process that stops says why

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


def start(how: Settings | None) -> bool:
  """Joins the other processes, before any device is touched. Returns whether there are any.

  Raises:
    InputError: the others cannot be reached.
  """
  if how is None:
    return False
  _check_port(how)
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


class PeerStopped(Exception):
  """Another process has stopped, and says why; `status` is that of its exit."""

  def __init__(self, process: int, status: int, why: str):
    super().__init__(f"process {process} stopped: {why}")
    self.status = status


def joined() -> bool:
  """Whether there are other processes."""
  return _client() is not None


def wait(name: str) -> None:
  """Returns when every process has come here.

  Raises:
    PeerStopped: one of them never will.
  """
  if client := _client():
    _attend(functools.partial(client.wait_at_barrier, f"{name}-{next(_numbers)}", DAY_MS))


def agree(facts: Mapping[str, Any], remedy: str) -> None:
  """Makes sure that all processes hand in the same.

  Args:
    facts: names and values.
    remedy: what to do where they differ.

  Raises:
    InputError: they differ; on every process, with the names and the values.
    PeerStopped: one of them has stopped before.
  """
  if not (client := _client()):
    return
  key, me = f"agree-{next(_numbers)}", process_index()
  mine = {name: str(value) for name, value in facts.items()}
  if me == 0:
    client.key_value_set(f"{key}/facts", json.dumps(mine))
  first = json.loads(_attend(lambda: client.blocking_key_value_get(f"{key}/facts", DAY_MS)))
  apart = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
  found = [
    f"{name}: process 0 has {_shown(first.get(name))}, process {me} has {_shown(mine.get(name))}"
    for name in apart[:NAMED]
  ]
  found += [f"and {len(apart) - NAMED} more"] * (len(apart) > NAMED)
  client.key_value_set(f"{key}/apart/{me}", "; ".join(found))
  wait("agreed")
  for _, line in sorted(client.key_value_dir_get(f"{key}/apart")):
    if line:
      raise InputError(f"{line}; {remedy}")


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


def check_shared(file: Path) -> None:
  """Makes sure that all processes look at one folder: checkpoints are written by all of them.

  Args:
    file: what process 0 has just written.

  Raises:
    InputError: another does not see it; on every process.
  """
  if not _client():
    return
  wait("written")
  deadline = time.monotonic() + SHOWS_SECONDS
  while not file.exists() and time.monotonic() < deadline:
    time.sleep(1)
  agree({str(file.parent): file.name if file.exists() else f"no {file.name}"}, SHARED)


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


def give_up(status: int, message: str = "", together: bool = True, why: str = "") -> NoReturn:
  """Ends this process with a failure, without the farewell that JAX would wait for.

  Args:
    status: of the exit.
    message: a line for standard error.
    together: first meet the others, which may have failed alike.
    why: a line for the others, which may wait for this process.
  """
  if message:
    print(f"infini-jax: {message}", file=sys.stderr)
  if why and (client := _client()):
    said = json.dumps([process_index(), status, why])
    _in_thread(functools.partial(client.key_value_set, STOPPED, said), TELL_SECONDS)
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


def _attend(call: Callable[[], Any]) -> Any:
  """What a call returns that blocks until the others do their part.

  It blocks a thread of its own: this one answers signals, and hears when another process stops.

  Raises:
    PeerStopped: so that the call would never return.
  """
  result = _in_thread(call)
  with _terminable():
    while not concurrent.futures.wait([result], POLL_SECONDS).done:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is no such key
        said = _client().key_value_try_get(STOPPED)
        raise PeerStopped(*json.loads(said))
  return result.result()


def _in_thread(call: Callable[[], Any], seconds: float = 0) -> concurrent.futures.Future:
  """A call under way in a thread that no exit waits for; first waits so long for its end."""
  result: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    try:
      result.set_result(call())
    except jax.errors.JaxRuntimeError as error:
      result.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  concurrent.futures.wait([result], seconds)
  return result


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """SIGTERM ends this process with a word to the others."""

  def end(number, frame):
    give_up(128 + number, together=False, why="it was told to, by SIGTERM")

  default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  if not default or threading.current_thread() is not threading.main_thread():
    yield
    return
  signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_port(how: Settings) -> None:
  """Two processes 0 would share the port, and each wait for the others in vain."""
  if how.process != 0 or not how.coordinator:
    return
  port = int(how.coordinator.rpartition(":")[2])
  try:
    with socket.socket() as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(("", port))
  except OSError as error:
    raise InputError(
      f"--coordinator={how.coordinator}: port {port} cannot be opened ({error.strerror}); choose "
      f"another, and start one process alone with --process=0"
    ) from None


def _seat_sitter(message: str) -> None:
  global _sitter
  command = [sys.executable, "-S", "-E", "-c", SITTER, message]
  _sitter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(_farewell)


def _farewell() -> None:
  if _sitter is not None and _sitter.stdin is not None and not _sitter.stdin.closed:
    with contextlib.suppress(OSError):
      _sitter.communicate(b".")


def _shown(value: str | None) -> str:
  if value is None:
    return "nothing"
  return value if len(value) <= 200 else f"{value[:200]}..."


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
