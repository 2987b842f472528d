"""The route that returns the log-probability of an answer, with or without a session before it."""

from collections.abc import Callable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infini_jax.inference import Session
from infini_jax.inference.batch import catch_up
from infini_jax.inference.forced import log_probs
from infini_jax.inference.texts import tokens_of
from infini_jax.serve import errors
from infini_jax.serve.errors import ApiError
from infini_jax.serve.events import Events, while_here
from infini_jax.serve.fields import Asking, asking, parse
from infini_jax.serve.job import Done, Event, Job, Text
from infini_jax.serve.service import Service

AT_A_TIME = 8  # tokens, before others have their turn


class Scoring(Job):
  """Reads tokens, then takes given ones instead of drawn ones.

  Args:
    session: as of `Job`; it is changed, and given up at the end.
    text: what is before the given tokens.
    tokens: the given ones.
    emit: as of `Job`. The result of `Done` is the list of their log-probabilities.
    **more: as of `Job`.
  """

  def __init__(
    self,
    session: Session,
    text: Text,
    tokens: list[int],
    emit: Callable[[Event], None],
    **more: Any,
  ):
    self._tokens, self._found = tokens, list[float]()
    super().__init__(session, text, None, emit, lambda *_: self._found, **more)

  def read_on(self) -> bool:
    """Reads, or takes a few of the given tokens; returns whether there is more to do."""
    if self._readable is not None:
      super().read_on()
      return True
    if catch_up(self.session):
      return True
    first = len(self._found)
    self._found += log_probs(self.session, self._tokens[first : first + AT_A_TIME])
    return len(self._found) < len(self._tokens)


async def scores(request: Request) -> Response:
  """The log-probabilities of the tokens of an answer."""
  service, body = request.app.state.service, parse(await request.body())
  tokens = body.pop("tokens", None)
  kind = "chat" if "messages" in body else "completion"
  most, V = service.limits.tokens, service.run.engine.config.model.vocab_size
  if not (isinstance(tokens, list) and tokens and all(_known(x, V) for x in tokens)):
    message = f"tokens: must be a list of at least one token, each from 0 to {V - 1}"
    raise ApiError(400, message, "invalid_value", "tokens")
  if len(tokens) > most:
    message = f"tokens: {len(tokens)} of them; at most {most} (--tokens of the server)"
    raise ApiError(400, message, "too_many_tokens", "tokens")
  for name in body.keys() - {"model", "messages", "prompt", "session"}:
    raise ApiError(400, f"{name[:80]!r}: no field of this API", "unknown_field", name[:80])
  asked = asking(kind, body, service.name, service.limits)
  events = Events(service)
  make = lambda: _job(service, asked, tokens, request.state.owner, events.put)
  with errors.about("messages" if kind == "chat" else "prompt"):
    each = events.of(await run_in_threadpool(make))
    return JSONResponse({"object": "scores", "logprobs": await while_here(request, _last(each))})


def _job(
  service: Service, asking: Asking, tokens: list[int], owner: str, emit: Callable[[Event], None]
) -> Scoring:
  session = Session(service.run)
  if asking.session:
    session = service.sessions.fork(asking.session, owner)
  asked = None
  if asking.kind == "chat":
    asked = session.ask(asking.messages, service.template, follows=True)
    readable: Iterator[int] = iter(asked.ids.tolist())
  else:
    readable = tokens_of(asking.readable(), session.tokenizer)
  if session.ended[0]:
    raise ApiError(400, "the model has ended this session's document", "session_ended", "session")
  seconds = service.limits.seconds
  return Scoring(session, Text(readable, asked), tokens, emit, owner=owner, seconds=seconds)


async def _last(each: Any) -> list[float]:
  async for event in each:
    if isinstance(event, Done):
      return event.result
  raise AssertionError("a job ends with Done, or raises")


def _known(token: Any, vocabulary: int) -> bool:
  return type(token) is int and 0 <= token < vocabulary
