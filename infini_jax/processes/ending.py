"""Ends one of several processes at once, with an error line and a message to the others."""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from infini_jax.processes.service import (
  client,
  first_line,
  in_thread,
  joined,
  process_count,
  process_index,
)
from infini_jax.processes.watchdog import farewell

TELL_SECONDS = 2  # how long a process that stops tries to send its reason to the others
TOGETHER_SECONDS = 10  # how long a process that fails waits for others that fail alike
STOPPED = "stopped"  # the key with the reason of the first process that stops


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Ends this process at once if the devices report that another process is gone.

  A normal exit would wait for the process that is gone.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if client() is None:
      raise
    give_up(1, lost(error), together=False)


def lost(error: BaseException) -> str:
  """One line about an error of the devices, or of the coordination service."""
  this = f"process {process_index()} of {process_count()}"
  return (
    f"{this} stops: {first_line(error)}; if another process ended, its own message says why. "
    f"The same command goes on from the newest checkpoint"
  )


def stop_all(status: int, message: str) -> NoReturn:
  """Ends this process because it was told to stop, and all others with it.

  Args:
    status: the exit status of all.
    message: a line for standard error.
  """
  give_up(status, message, together=False, why="it was told to stop")


def give_up(status: int, message: str = "", together: bool = True, why: str = "") -> NoReturn:
  """Ends this process with a failure, without JAX's shutdown, which would wait for the others.

  Args:
    status: the exit status.
    message: a line for standard error.
    together: whether to wait first for other processes that may have failed alike.
    why: the reason, for other processes that may wait for this one.
  """
  if message:
    print(f"infini-jax: {message}", file=sys.stderr)
  if why and (service := client()):
    said = json.dumps([process_index(), status, why])
    in_thread(functools.partial(service.key_value_set, STOPPED, said), TELL_SECONDS)
  if together and (service := client()):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      service.wait_at_barrier("failed", TOGETHER_SECONDS * 1000)
  if joined() and process_index() == 0:
    time.sleep(2)  # the service ends with this process; the others may still print their errors
  sys.stdout.flush()
  sys.stderr.flush()
  farewell()
  os._exit(status)
