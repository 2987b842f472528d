"""Joins the processes of a run, before any device is used."""

import socket

import jax

from infini_jax.config import InputError
from infini_jax.processes import presence, watchdog
from infini_jax.processes.joining import Settings
from infini_jax.processes.service import first_line


def start(how: Settings | None) -> bool:
  """Joins the other processes, before any device is used. Returns whether there are any.

  Raises:
    InputError: the others cannot be reached.
  """
  if how is None:
    return False
  _check_port(how)
  # JAX would handle SIGTERM itself. Instead, the loop compares a flag of all processes each step.
  jax.config.update("jax_enable_preemption_service", False)
  who = "this process" if how.process is None else f"process {how.process} of {how.processes}"
  first = "" if how.process in (None, 0) or not how.coordinator else how.coordinator
  watchdog.seat(presence.last_words(who, []), first, presence.last_words(who, [0]))
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
      f"({first_line(error)}): start all of them, each with the address of process 0 as "
      f"--coordinator=HOST:PORT"
    ) from None
  presence.watch()
  return True


def _check_port(how: Settings) -> None:
  """Raises InputError if the port is in use: two processes 0 would use it, and wait forever."""
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
