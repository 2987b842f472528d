"""Keeps processes in step: they wait for each other, compare their inputs, and stop together.

All processes run the same program on the same inputs. Further data is exchanged through the
coordination service, or over the devices. A single process never waits.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infini_jax.config import InputError
from infini_jax.processes.ending import REASON, give_up
from infini_jax.processes.service import client, in_thread, joined, process_index

DAY_MS = 24 * 3600 * 1000  # the timeout of a call; a wait ends earlier if another process dies
SHOWS_SECONDS = 60  # how long a network file system may hide a new file from other hosts
POLL_SECONDS = 0.5  # how often a waiting process checks whether another has stopped
NAMED = 3  # the largest number of differences in a message
SHARED = "--workdir must be on a file system of all hosts"

_numbers = itertools.count()  # numbers the waits, which have the same order in every process


class PeerStopped(Exception):
  """Another process has stopped, with its reason; `status` is its exit status."""

  def __init__(self, process: int, status: int, why: str):
    super().__init__(f"process {process} stopped: {why}")
    self.status = status


def wait(name: str) -> None:
  """Waits until every process has called it.

  Raises:
    PeerStopped: another process has stopped.
  """
  if service := client():
    _attend(functools.partial(service.wait_at_barrier, f"{name}-{next(_numbers)}", DAY_MS))


def finish() -> None:
  """Waits until all processes are at their end, so that none exits while another still writes."""
  wait("end")


def agree(facts: Mapping[str, Any], remedy: str) -> None:
  """Checks that all processes have the same facts.

  Args:
    facts: values by their names.
    remedy: the end of the error message: what to do if they differ.

  Raises:
    InputError: they differ; raised in every process, with the names and the values.
    PeerStopped: another process has stopped.
  """
  if not (service := client()):
    return
  key, me = f"agree-{next(_numbers)}", process_index()
  mine = {name: str(value) for name, value in facts.items()}
  if me == 0:
    service.key_value_set(f"{key}/facts", json.dumps(mine))
  first = json.loads(_attend(lambda: service.blocking_key_value_get(f"{key}/facts", DAY_MS)))
  apart = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
  found = [
    f"{name}: process 0 has {_shown(first.get(name))}, process {me} has {_shown(mine.get(name))}"
    for name in apart[:NAMED]
  ]
  found += [f"and {len(apart) - NAMED} more"] * (len(apart) > NAMED)
  service.key_value_set(f"{key}/apart/{me}", "; ".join(found))
  wait("agreed")
  for _, line in sorted(service.key_value_dir_get(f"{key}/apart")):
    if line:
      raise InputError(f"{line}; {remedy}")


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
  """Process 0 runs the body first. The others run it after that, and find what process 0 made.

  If process 0 fails, the others run the body too: they fail alike, and all report it.
  """
  if process_index() > 0:
    wait(name)
  try:
    yield
  finally:
    if process_index() == 0:
      wait(name)


def check_shared(file: Path) -> None:
  """Checks that all processes see the same folder: all of them write checkpoints.

  Args:
    file: a file that process 0 has just written.

  Raises:
    InputError: another process does not see it; raised in every process.
  """
  if not joined():
    return
  wait("written")
  deadline = time.monotonic() + SHOWS_SECONDS
  while not file.exists() and time.monotonic() < deadline:
    time.sleep(1)
  agree({str(file.parent): file.name if file.exists() else f"no {file.name}"}, SHARED)


class Anyone:
  """Whether any process set its flag: the same answer in all processes, one call later.

  The devices compare the flags after the previous step, so no process waits for another. A single
  process gets its own flag back at once.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(jnp.any)
    self._size, self._before = mesh.size, None

  def __call__(self, flag: bool) -> bool:
    """Sets this process's flag; returns whether any process set its flag at the previous call."""
    if jax.process_count() == 1:
      return flag
    mine = lambda index: np.full(len(range(self._size)[index[0]]), flag)
    flags = jax.make_array_from_callback((self._size,), self._sharding, mine)
    answer, self._before = self._before, self._any(flags)
    return answer is not None and bool(answer)


def _attend(call: Callable[[], Any]) -> Any:
  """The result of a call that blocks until the other processes make a similar call.

  The call runs in its own thread. Meanwhile this thread handles signals, and checks whether another
  process has stopped.

  Raises:
    PeerStopped: another process has stopped, so the call would never return.
  """
  result = in_thread(call)
  with _terminable():
    while not concurrent.futures.wait([result], POLL_SECONDS).done:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is no such key
        said = client().key_value_try_get(REASON)
        raise PeerStopped(*json.loads(said))
  return result.result()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """Within the body, SIGTERM ends this process and sends the reason to the others."""

  def end(number, frame):
    give_up(128 + number, together=False, why="it received SIGTERM")

  default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  if not default or threading.current_thread() is not threading.main_thread():
    yield
    return
  signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _shown(value: str | None) -> str:
  if value is None:
    return "nothing"
  return value if len(value) <= 200 else f"{value[:200]}..."
