"""Several processes as one run: they are joined, kept in step, and ended together.

With a single process, nothing here starts a service of JAX, and nothing waits.
"""

from infini_jax.processes.agreement import check_alike, check_same_inputs
from infini_jax.processes.ending import give_up, stop_all
from infini_jax.processes.joining import settings
from infini_jax.processes.presence import guard
from infini_jax.processes.service import joined, process_index
from infini_jax.processes.starting import start
from infini_jax.processes.together import (
  Anyone,
  PeerStopped,
  check_shared,
  finish,
  first_alone,
  wait,
)

__all__ = [
  "Anyone",
  "PeerStopped",
  "check_alike",
  "check_same_inputs",
  "check_shared",
  "finish",
  "first_alone",
  "give_up",
  "guard",
  "joined",
  "process_index",
  "settings",
  "start",
  "stop_all",
  "wait",
]
