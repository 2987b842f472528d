"""The events of a job, passed from its thread to the thread of the server, and sent to clients."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from infini_jax.serve.job import Done, Event, Failed, Job, Written
from infini_jax.serve.service import Service

Value = TypeVar("Value")
MEDIA_TYPE = "text/event-stream"


class Events:
  """The events of one job."""

  def __init__(self, service: Service) -> None:
    self._service, self._started = service, time.monotonic()
    self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

  def put(self, event: Event) -> None:
    """Adds an event, from any thread."""
    with contextlib.suppress(RuntimeError):  # the server has ended
      self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

  async def of(self, job: Job) -> AsyncGenerator[Event, None]:
    """Runs a job: its events until it ends. If the client has disconnected, it is cancelled.

    Raises:
      BaseException: the error of the job.
    """
    self._service.scheduler.submit(job)
    event: Event | None = None
    wrote = False
    try:
      while not isinstance(event, Done):
        event = await self._queue.get()
        if isinstance(event, Failed):
          raise event.error
        if isinstance(event, Written) and not wrote:
          wrote = True
          self._service.metrics.first(time.monotonic() - self._started)
        yield event
    finally:
      if not isinstance(event, Done | Failed):
        self._service.scheduler.cancel(job)


async def while_here(request: Request, awaited: Awaitable[Value]) -> Value:
  """The result of what is awaited, which is cancelled when the client goes away.

  Raises:
    ClientDisconnect: it has gone.
  """
  work, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(_gone(request))
  try:
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
      return work.result()
    raise ClientDisconnect
  finally:
    for task in (work, gone):
      task.cancel()
      with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def line(content: Any) -> str:
  """A server-sent event with an object as JSON, or with a text."""
  return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n"


async def _gone(request: Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass
