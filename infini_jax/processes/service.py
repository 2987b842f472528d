"""Access to JAX's coordination service, which runs in process 0.

A single process has no such service, and then nothing here waits.
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # its client has no public name


def process_index() -> int:
  """The number of this process. It needs no device."""
  return jax_distributed.global_state.process_id


def process_count() -> int:
  """The number of joined processes; 1 for a single process."""
  return jax_distributed.global_state.num_processes or 1


def client() -> Any:
  """The client of the service; None in a single process."""
  return jax_distributed.global_state.client


def joined() -> bool:
  """Whether there are other processes."""
  return client() is not None


def in_thread(call: Callable[[], Any], seconds: float = 0) -> concurrent.futures.Future:
  """Runs a call in a daemon thread, waits `seconds` for its end, and returns its future."""
  result: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    try:
      result.set_result(call())
    except jax.errors.JaxRuntimeError as error:
      result.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  concurrent.futures.wait([result], seconds)
  return result


def first_line(error: BaseException) -> str:
  """The first line of an error's text, at most 300 characters."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
