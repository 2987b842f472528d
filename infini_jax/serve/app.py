"""The application: all routes, and the form of errors."""

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infini_jax.config import InputError
from infini_jax.serve import answers, completing, errors, keeping, memory, pages, scoring
from infini_jax.serve.errors import ApiError
from infini_jax.serve.guard import LOCAL, Guard, Keys
from infini_jax.serve.metrics import MEDIA_TYPE
from infini_jax.serve.service import Service


def make_app(
  service: Service, keys: Keys, hosts: tuple[str, ...] = LOCAL, report: Path | None = None
) -> Any:
  """The ASGI application.

  Args:
    service: what it serves.
    keys: who may use it.
    hosts: the names of this server; empty: any.
    report: the file of the run's report, which need not be there.
  """
  routes = [
    *pages.routes(),
    Route("/health", health),
    Route("/metrics", metrics),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    Route("/v1/completions", completing.completions, methods=["POST"]),
    Route("/v1/chat/completions", completing.chat, methods=["POST"]),
    Route("/v1/sessions", keeping.listed),
    Route("/v1/sessions", keeping.create, methods=["POST"]),
    Route("/v1/sessions/state", keeping.upload, methods=["POST"]),
    Route("/v1/sessions/{id}", keeping.one),
    Route("/v1/sessions/{id}", keeping.remove, methods=["DELETE"]),
    Route("/v1/sessions/{id}/fork", keeping.fork, methods=["POST"]),
    Route("/v1/sessions/{id}/state", keeping.download),
    Route("/v1/sessions/{id}/memory", memory.of_session),
    Route("/v1/memory", memory.gates),
    Route("/v1/scores", scoring.scores, methods=["POST"]),
  ]
  kinds: tuple[Any, ...] = (ApiError, InputError, HTTPException, Exception)
  handlers = {**dict.fromkeys(kinds, failed), ClientDisconnect: gone}
  app = Starlette(routes=routes, exception_handlers=handlers)
  app.router.redirect_slashes = False
  app.state.service, app.state.report = service, report
  return Guard(app, keys, service.limits, service.metrics, hosts)


async def failed(request: Request, error: Exception) -> Response:
  """An error as the answer."""
  if isinstance(error, HTTPException):
    said = {404: "no such path", 405: f"{request.method} is not a method of this path"}
    message = said.get(error.status_code, str(error.detail))
    code = "no_route" if error.status_code in said else "invalid_value"
    error = ApiError(error.status_code, message, code)
  told = errors.of(error)
  return JSONResponse(told.body(), told.status)


async def gone(request: Request, error: Exception) -> Response:
  """An empty response, for a client that has disconnected."""
  return Response(status_code=499)


async def health(request: Request) -> Response:
  """Whether the server answers."""
  return JSONResponse({"status": "ok", "model": request.app.state.service.name})


async def metrics(request: Request) -> Response:
  """What Prometheus reads."""
  return Response(request.app.state.service.metrics.text(), media_type=MEDIA_TYPE)


async def models(request: Request) -> Response:
  """The one model, in a list."""
  return JSONResponse({"object": "list", "data": [_model(request)]})


async def model(request: Request) -> Response:
  """The model of this name."""
  service, name = request.app.state.service, request.path_params["name"]
  if name != service.name:
    raise ApiError(404, f"no model {name[:80]!r}; there is {service.name!r}", "model_not_found")
  return JSONResponse(_model(request))


def _model(request: Request) -> dict[str, Any]:
  report = pages.readable(request.app.state.report) and not request.state.owner
  return {**answers.model(request.app.state.service), "report": report}
