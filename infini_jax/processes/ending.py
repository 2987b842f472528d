"""How a process of many ends: at once, with a line for a person and a word to the others."""

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
  process_count,
  process_index,
)
from infini_jax.processes.watchdog import farewell

TELL_SECONDS = 2  # a process that stops tries so long to tell the others why
TOGETHER_SECONDS = 10  # so long a process that fails waits for others that fail alike
STOPPED = "stopped"  # the key under which the first process that stops says why


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Ends this process at once when the devices report that a peer is gone.

  Whatever would be tidied up on the way out would wait for the dead.
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
  if why and (service := client()):
    said = json.dumps([process_index(), status, why])
    in_thread(functools.partial(service.key_value_set, STOPPED, said), TELL_SECONDS)
  if together and (service := client()):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      service.wait_at_barrier("failed", TOGETHER_SECONDS * 1000)
  if process_index() == 0:
    time.sleep(2)  # the service ends with this process: let the others say what they have seen
  sys.stdout.flush()
  sys.stderr.flush()
  farewell()
  os._exit(status)
