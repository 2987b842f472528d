"""The routes for the memory: its gates, and how much of it a session uses."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infini_jax.inference import Session
from infini_jax.inference.filling import used
from infini_jax.serve.job import Event, Progress

SECONDS = 0.5  # the least time between two looks at a memory that is being written
SHARE = 0.05  # the most of the time that looking may take


async def gates(request: Request) -> Response:
  """The share of the memory in the output of each head, by layer."""
  told = rounded(request.app.state.service.gates_LH)
  return JSONResponse({"object": "memory", "gates": told})


async def of_session(request: Request) -> Response:
  """The share of its directions that each memory of a session uses, by layer."""
  sessions = request.app.state.service.sessions
  id, owner = request.path_params["id"], request.state.owner
  look = lambda: used(sessions.fork(id, owner))
  told = rounded(await run_in_threadpool(look))
  return JSONResponse({"object": "session.memory", "id": id, "used": told})


def looking(session: Session, emit: Callable[[Event], None]) -> Callable[[Event], None]:
  """As `emit`; now and then, it adds to the progress of reading how much of the memory is used.

  It waits for the device, so that what counts as read has been read.
  """
  due = 0.0

  def look(event: Event) -> None:
    nonlocal due
    if isinstance(event, Progress):
      session.wait()
    started = time.monotonic()
    if isinstance(event, Progress) and started >= due:
      event = event._replace(used=rounded(used(session)))
      ended = time.monotonic()
      due = ended + max(SECONDS, (ended - started) / SHARE)
    emit(event)

  return look


def rounded(x: np.ndarray | None) -> Any:
  """An array as lists of JSON."""
  return None if x is None else np.round(x.astype(np.float64), 4).tolist()
