"""The routes of sessions: read, list, fork, remove, move."""

import contextlib
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import IO, Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from infini_jax.serve import answers, errors
from infini_jax.serve.errors import ApiError
from infini_jax.serve.events import MEDIA_TYPE, Events, line, while_here
from infini_jax.serve.fields import Fields, flag, name_of, parse, printable, text
from infini_jax.serve.job import Done, Event, Progress

IN_MEMORY = 2**20  # bytes of an upload that are kept in memory; more go into a temporary file


class Uploaded(NamedTuple):
  """The upload of a request.

  Attributes:
    file: opened in binary, at its beginning.
    size: its bytes.
    name: what the session is to be called.
    stream: whether the progress is sent.
  """

  file: IO[bytes]
  size: int
  name: str
  stream: bool


async def listed(request: Request) -> Response:
  """The sessions of the owner."""
  kept = request.app.state.service.sessions.list(request.state.owner)
  return JSONResponse({"object": "list", "data": [answers.session(each) for each in kept]})


async def one(request: Request) -> Response:
  """A session."""
  sessions = request.app.state.service.sessions
  kept = sessions.get(request.path_params["id"], request.state.owner)
  return JSONResponse(answers.session(kept))


async def create(request: Request) -> Response:
  """Reads a text into a new session; with `stream`, it sends its progress."""
  service = request.app.state.service
  brought = await _uploaded(request)
  events = Events(service)
  job = await run_in_threadpool(
    service.read, brought.file, brought.size, request.state.owner, brought.name, events.put
  )
  each = events.of(job)
  if not brought.stream:
    return JSONResponse(await while_here(request, _last(each)))
  first = await while_here(request, anext(each))
  return StreamingResponse(_streamed(first, each), media_type=MEDIA_TYPE)


async def remove(request: Request) -> Response:
  """Removes a session."""
  id = request.path_params["id"]
  await run_in_threadpool(request.app.state.service.sessions.remove, id, request.state.owner)
  return JSONResponse({"id": id, "object": "session.deleted", "deleted": True})


async def fork(request: Request) -> Response:
  """A new session with what another one has read."""
  content = await request.body()
  field = Fields(parse(content) if content else {})
  field.only("name")
  name = field.of("name", name_of, "")
  id, owner = request.path_params["id"], request.state.owner
  kept = await run_in_threadpool(request.app.state.service.fork, id, owner, name)
  return JSONResponse(answers.session(kept))


async def download(request: Request) -> Response:
  """The state file of a session."""
  sessions, id = request.app.state.service.sessions, request.path_params["id"]
  file = await run_in_threadpool(sessions.opened, id, request.state.owner)
  headers = {
    "content-length": str(os.fstat(file.fileno()).st_size),
    "content-disposition": 'attachment; filename="session.state"',
  }
  return StreamingResponse(_content(file), media_type="application/octet-stream", headers=headers)


async def upload(request: Request) -> Response:
  """A new session from a state file."""
  brought = await _uploaded(request)
  load = request.app.state.service.load
  kept = await run_in_threadpool(load, brought.file, request.state.owner, brought.name)
  return JSONResponse(answers.session(kept))


def _content(file: IO[bytes]) -> Iterator[bytes]:
  with file:
    yield from iter(lambda: file.read(IN_MEMORY), b"")


async def _last(each: AsyncGenerator[Event, None]) -> dict[str, Any]:
  async with contextlib.aclosing(each):
    async for event in each:
      if isinstance(event, Done):
        return answers.session(event.result)
  raise AssertionError("a job ends with Done, or raises")


async def _streamed(first: Event, each: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
  started = time.monotonic()

  def told(event: Event) -> str:
    if isinstance(event, Progress):
      return line(answers.progress(event, time.monotonic() - started))
    return line(answers.session(event.result) if isinstance(event, Done) else {})

  try:
    async with contextlib.aclosing(each):
      yield told(first)
      async for event in each:
        yield told(event)
    yield line("[DONE]")
  except Exception as error:
    yield line(errors.of(error).body())


async def _uploaded(request: Request) -> Uploaded:
  """What is in the body: a JSON object with `text`, a form with `file`, or the bytes themselves.

  The name and `stream` are other fields; with the bytes themselves, they are in the query.

  Raises:
    ApiError: it is none of these, or a field is wrong.
  """
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind == "application/json":
    field = Fields(parse(await request.body()))
    field.only("text", "name", "stream")
    content = field.of("text", text).encode("utf-8", "surrogatepass")
    file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)
    file.write(content)
    name, stream = field.of("name", name_of, ""), field.of("stream", flag, False)
  elif kind == "multipart/form-data":
    form = await request.form(max_files=1, max_fields=8)
    part = form.get("file")
    if not isinstance(part, UploadFile):
      raise ApiError(400, "file: the form has no such field", "missing", "file")
    file, others = part.file, {key: form[key] for key in form if key != "file"}
    name, stream = _name_and_stream(others, printable(str(part.filename or "")))
  elif kind in ("text/plain", "application/octet-stream"):
    name, stream = _name_and_stream(dict(request.query_params), "")
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)
    async for piece in request.stream():
      await run_in_threadpool(file.write, piece)
  else:
    raise ApiError(
      415,
      f"content-type {kind[:80]!r}: send application/json, multipart/form-data, text/plain or "
      "application/octet-stream",
      "unknown_content",
    )
  size = file.seek(0, 2)
  file.seek(0)
  return Uploaded(file, size, name, stream)


def _name_and_stream(fields: dict[str, Any], name: str) -> tuple[str, bool]:
  """The name and `stream`, which come as text."""
  words = {"true": True, "1": True, "false": False, "0": False}
  stream = fields.get("stream", "false")
  field = Fields({"name": name, **fields, "stream": words.get(str(stream), stream)})
  field.only("name", "stream")
  return field.of("name", name_of), field.of("stream", flag)
