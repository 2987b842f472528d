"""Many processes as one run: started from the environment, kept in step, ended together.

A single process is left alone: then nothing here starts anything of JAX's, or waits.
"""

from infini_jax.processes.agreement import check_alike, check_same_inputs
from infini_jax.processes.ending import give_up, guard
from infini_jax.processes.joining import settings
from infini_jax.processes.service import process_index
from infini_jax.processes.starting import start
from infini_jax.processes.together import Anyone, PeerStopped, check_shared, finish, first_alone

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
  "process_index",
  "settings",
  "start",
]
