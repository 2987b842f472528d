"""Processes kept in step: they wait for each other, compare what they have, and stop together.

All processes run the same program on the same inputs. What they must agree on beyond that goes
through the coordination service, or over the devices. A single process never waits.
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
from infini_jax.processes.ending import STOPPED, give_up
from infini_jax.processes.service import client, in_thread, joined, process_index

DAY_MS = 24 * 3600 * 1000  # a wait ends when a peer dies; this is only what the call asks for
SHOWS_SECONDS = 60  # so long a network file system may hide a new file from other hosts
POLL_SECONDS = 0.5  # so often a process that waits asks whether another has stopped
NAMED = 3  # differences that are named, at most
SHARED = "--workdir must be on a file system that all hosts share"

_numbers = itertools.count()  # every process waits in the same order, so the names agree


class PeerStopped(Exception):
  """Another process has stopped, and says why; `status` is that of its exit."""

  def __init__(self, process: int, status: int, why: str):
    super().__init__(f"process {process} stopped: {why}")
    self.status = status


def wait(name: str) -> None:
  """Returns when every process has come here.

  Raises:
    PeerStopped: one of them never will.
  """
  if service := client():
    _attend(functools.partial(service.wait_at_barrier, f"{name}-{next(_numbers)}", DAY_MS))


def finish() -> None:
  """Returns when all processes have come to their end: no one leaves while another still writes."""
  wait("end")


def agree(facts: Mapping[str, Any], remedy: str) -> None:
  """Makes sure that all processes hand in the same.

  Args:
    facts: names and values.
    remedy: what to do where they differ.

  Raises:
    InputError: they differ; on every process, with the names and the values.
    PeerStopped: one of them has stopped before.
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
  if not joined():
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


def _attend(call: Callable[[], Any]) -> Any:
  """What a call returns that blocks until the others do their part.

  It blocks a thread of its own: this one answers signals, and hears when another process stops.

  Raises:
    PeerStopped: so that the call would never return.
  """
  result = in_thread(call)
  with _terminable():
    while not concurrent.futures.wait([result], POLL_SECONDS).done:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is no such key
        said = client().key_value_try_get(STOPPED)
        raise PeerStopped(*json.loads(said))
  return result.result()


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


def _shown(value: str | None) -> str:
  if value is None:
    return "nothing"
  return value if len(value) <= 200 else f"{value[:200]}..."
