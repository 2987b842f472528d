"""The routes that write: completions and chats."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from infini_jax.serve import errors
from infini_jax.serve.answers import Completion
from infini_jax.serve.events import MEDIA_TYPE, Events, line, while_here
from infini_jax.serve.fields import asking, parse
from infini_jax.serve.job import Event

PARAM = {"completion": "prompt", "chat": "messages"}  # what is read


async def completions(request: Request) -> Response:
  """A text that continues."""
  return await _complete(request, "completion")


async def chat(request: Request) -> Response:
  """An answer in a conversation."""
  return await _complete(request, "chat")


async def _complete(request: Request, kind: str) -> Response:
  service = request.app.state.service
  asked = asking(kind, parse(await request.body()), service.name, service.limits)
  events = Events(service)
  with errors.about(PARAM[kind]):
    job, before = await run_in_threadpool(service.complete, asked, request.state.owner, events.put)
  answer = Completion(asked, before, service.name, service.fingerprint, service.run.tokenizer)
  each = events.of(job)
  with errors.about(PARAM[kind]):
    if not asked.stream:
      return JSONResponse(await while_here(request, _whole(each, answer)))
    first = await while_here(request, anext(each))  # an error so far has a status of its own
  return StreamingResponse(_streamed(first, each, answer), media_type=MEDIA_TYPE)


async def _whole(each: AsyncGenerator[Event, None], answer: Completion) -> dict:
  async with contextlib.aclosing(each):
    async for event in each:
      answer.take(event)
  return answer.whole()


async def _streamed(
  first: Event, each: AsyncGenerator[Event, None], answer: Completion
) -> AsyncIterator[str]:
  try:
    async with contextlib.aclosing(each):
      for chunk in [*answer.first(), *answer.take(first)]:
        yield line(chunk)
      async for event in each:
        for chunk in answer.take(event):
          yield line(chunk)
    yield line("[DONE]")
  except Exception as error:
    yield line(errors.of(error).body())
