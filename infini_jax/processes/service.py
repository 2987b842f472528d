"""JAX's coordination service, which lives in process 0, as this process sees it.

A single process has none: then nothing here waits.
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # its client has no public name


def process_index() -> int:
  """The number of this process, known before any device is."""
  return jax_distributed.global_state.process_id


def process_count() -> int:
  """How many processes have joined; 1 without others."""
  return jax_distributed.global_state.num_processes or 1


def client() -> Any:
  """What speaks with the service; None for a process by itself."""
  return jax_distributed.global_state.client


def joined() -> bool:
  """Whether there are other processes."""
  return client() is not None


def in_thread(call: Callable[[], Any], seconds: float = 0) -> concurrent.futures.Future:
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


def first_line(error: BaseException) -> str:
  """The beginning of an error, in one line."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
