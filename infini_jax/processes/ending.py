"""Ends one of several processes at once, with an error line and a message to the others."""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from typing import NoReturn

import jax

from infini_jax.processes.service import client, in_thread, joined, process_index
from infini_jax.processes.watchdog import farewell

LEAVE_SECONDS = 4  # how long process 0, which has the service, waits for the others to end
TELL_SECONDS = 2  # how long a process that stops tries to send its reason to the others
TOGETHER_SECONDS = 10  # how long a process that fails waits for others that fail alike
STOPPED = "stopped"  # the folder of keys with the reason of the first process that stops
REASON = f"{STOPPED}/first"

_calls: list[list[int]] = []  # of `give_up`, each with its thread; the first ends this process


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
  this = [threading.get_ident()]
  _calls.append(this)
  if _calls[0] is not this:  # a second signal in the same thread does not wait
    time.sleep(TOGETHER_SECONDS if _calls[0] != this else 0)
    os._exit(status)
  if message:
    # Not sys.stderr, which a save or a restore in another thread may hold back.
    print(f"infini-jax: {message}", file=sys.__stderr__, flush=True)
  farewell()
  if why and (service := client()):
    said = json.dumps([process_index(), status, why])
    in_thread(functools.partial(service.key_value_set, REASON, said), TELL_SECONDS)
  if together and (service := client()):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      service.wait_at_barrier("failed", TOGETHER_SECONDS * 1000)
  if joined() and process_index() == 0:
    time.sleep(LEAVE_SECONDS)  # the service ends with this process; the others still read why
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
