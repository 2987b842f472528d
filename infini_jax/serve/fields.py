"""The fields of a request for a completion, checked one by one."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from infini_jax.config import InputError
from infini_jax.inference.arguments import LARGEST_SEED, short, stops, whole
from infini_jax.inference.batch import LIKELIEST
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.texts import text_stream
from infini_jax.serve.errors import ApiError
from infini_jax.serve.limits import Limits

TOKENS = 16  # the default of max_tokens of a completion, as OpenAI's
MOST_STOPS = 16
MOST_NAME = 200
MOST_LOGPROBS = {"completion": 5, "chat": LIKELIEST}
BOTH = {
  *("model", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop"),
  *("stream", "stream_options", "logprobs", "session", "fork", "user", "metadata", "store"),
  *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
}
OWN = {
  "completion": {"prompt"},
  "chat": {"messages", "max_completion_tokens", "top_logprobs"},
}
# Fields of OpenAI that would change the answer, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
  "n": (1,),
  "best_of": (1,),
  "echo": (False,),
  "suffix": ("",),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "logit_bias": ({},),
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "functions": ([],),
  "parallel_tool_calls": (True, False),
  "response_format": ({"type": "text"},),
  "modalities": (["text"],),
  "service_tier": ("auto", "default"),
  "reasoning_effort": (),
}


@dataclasses.dataclass
class Asking:
  """A request for a completion.

  Attributes:
    kind: completion or chat.
    prompt: the text or the tokens to read; of a completion.
    messages: of a chat.
    tokens: the most tokens to write.
    how: how they are drawn.
    seed: of the draws.
    stop: texts that end it.
    stream: whether the answer is streamed.
    usage: whether a stream ends with the numbers of tokens.
    logprobs: how many of the likeliest tokens are returned with each token; None: no probabilities.
    session: the session to read on from; empty: a new text.
    fork: whether the session stays as it is.
  """

  kind: str
  prompt: str | list[int]
  messages: list[Any]
  tokens: int
  how: Sampling
  seed: int
  stop: tuple[str, ...]
  stream: bool
  usage: bool
  logprobs: int | None
  session: str
  fork: bool

  def readable(self) -> Any:
    """The prompt as `tokens_of` takes it; a text is never the name of a file."""
    return text_stream(self.prompt) if isinstance(self.prompt, str) else iter(self.prompt)


def parse(content: bytes) -> dict[str, Any]:
  """The JSON object of a body.

  Raises:
    ApiError: it is none.
  """
  try:
    body = json.loads(content.decode("utf-8"), parse_constant=_no_number)
  except UnicodeDecodeError:
    raise ApiError(400, "the body is not UTF-8; send JSON in UTF-8", "bad_json") from None
  except (ValueError, RecursionError) as error:
    raise ApiError(400, f"the body is no JSON ({short(str(error))})", "bad_json") from None
  if not isinstance(body, dict):
    raise ApiError(400, "the body is no JSON object; send {...}", "bad_json")
  try:
    json.dumps(body, ensure_ascii=False).encode() if b"\\u" in content else None
  except UnicodeEncodeError:
    raise ApiError(400, "a text of the body holds half a character (\\ud8..)", "bad_json") from None
  return body


def asking(kind: str, body: dict[str, Any], model: str, limits: Limits) -> Asking:
  """A request for a completion.

  Args:
    kind: completion or chat.
    body: the JSON object.
    model: the name of the model.
    limits: of the server.

  Raises:
    ApiError: a field is wrong, or unknown.
  """
  body = {name: value for name, value in body.items() if value is not None}
  _check_names(kind, body)
  if body.get("model", model) != model:
    raise ApiError(
      404, f"model={short(body['model'])}: there is {model!r}", "model_not_found", "model"
    )
  field = Fields(body)
  tokens = field.of("max_tokens", lambda name, x: whole(name, x, least=1), None)
  if kind == "chat":
    tokens = field.of("max_completion_tokens", lambda name, x: whole(name, x, least=1), tokens)
  if tokens is not None and tokens > limits.tokens:
    raise ApiError(
      400,
      f"max_tokens={tokens}: at most {limits.tokens} (--tokens of the server)",
      "too_many_tokens",
      "max_tokens",
    )
  default = TOKENS if kind == "completion" else limits.tokens
  options = field.of("stream_options", _object, {})
  session = field.of("session", text, "")
  fork = field.of("fork", flag, False)
  if fork and not session:
    raise ApiError(400, "fork=true: names no session; give session", "invalid_value", "fork")
  return Asking(
    kind=kind,
    prompt=field.of("prompt", _prompt, "") if kind == "completion" else "",
    messages=field.of("messages", _messages) if kind == "chat" else [],
    tokens=min(default, limits.tokens) if tokens is None else tokens,
    how=_sampling(field),
    seed=field.of("seed", _seed, None) if "seed" in body else secrets.randbits(32),
    stop=field.of("stop", _stop, ()),
    stream=field.of("stream", flag, False),
    usage=flag("stream_options.include_usage", options.get("include_usage", False)),
    logprobs=_logprobs(kind, field),
    session=session,
    fork=fork,
  )


class Fields:
  """The fields of a request; an error names the field."""

  def __init__(self, body: dict[str, Any]):
    self._body = {name: value for name, value in body.items() if value is not None}

  def only(self, *names: str) -> None:
    """Makes sure that there are no other fields.

    Raises:
      ApiError: there is one.
    """
    for name in self._body:
      if name not in names:
        raise ApiError(400, f"{short(name)}: no field of this API", "unknown_field", name[:80])

  def of(self, name: str, check: Callable[[str, Any], Any], *default: Any) -> Any:
    """A field as `check` converts it.

    Raises:
      ApiError: it is wrong, or it is missing and has no default.
    """
    if name not in self._body:
      if not default:
        raise ApiError(400, f"{name}: is missing", "missing", name)
      return default[0]
    try:
      return check(name, self._body[name])
    except InputError as error:
      raise ApiError(400, str(error), "invalid_value", name) from None


def _check_names(kind: str, body: dict[str, Any]) -> None:
  for name, value in body.items():
    if name in BOTH or name in OWN[kind]:
      continue
    if name not in NEUTRAL:
      raise ApiError(400, f"{short(name)}: no field of this API", "unknown_field", name[:80])
    if not any(value == one and type(value) in (type(one), float) for one in NEUTRAL[name]):
      raise ApiError(
        400,
        f"{name}={short(value)}: this server does not support it; leave it out",
        "unsupported",
        name,
      )


def _sampling(field: Fields) -> Sampling:
  how: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
  for name in ("temperature", "top_p", "top_k", "repetition_penalty"):

    def check(name: str, value: Any) -> Any:
      return getattr(Sampling(**{name: value}), name)

    if (value := field.of(name, check, None)) is not None:
      how[name] = value
  return Sampling(**how)


def _logprobs(kind: str, field: Fields) -> int | None:
  count = lambda name, x: whole(name, x, most=MOST_LOGPROBS[kind])
  if kind == "completion":
    return field.of("logprobs", count, None)
  wanted = field.of("logprobs", flag, False)
  several = field.of("top_logprobs", count, None)
  if several is not None and not wanted:
    raise ApiError(400, "top_logprobs: needs logprobs=true", "invalid_value", "top_logprobs")
  return (several or 0) if wanted else None


def _prompt(name: str, value: Any) -> str | list[int]:
  if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
    (value,) = value
  if isinstance(value, str) and "\0" in value:
    raise InputError(f"{name}: holds NUL characters, so it is not text")
  if isinstance(value, str):
    return value
  if isinstance(value, list) and all(type(x) is int and 0 <= x < 2**31 for x in value):
    return value
  raise InputError(f"{name}={short(value)}: must be one text, or a list of tokens")


def _messages(name: str, value: Any) -> list[Any]:
  """Messages whose contents are texts; a content may come as a list of text items."""
  if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
    raise InputError(f"{name}={short(value)}: must be a list of objects with role and content")
  return [
    {**message, "content": _content(message.get("content")), **_role(message)} for message in value
  ]


def _role(message: dict[str, Any]) -> dict[str, str]:
  """The role in the words of templates: OpenAI's newer models call the system a developer."""
  return {"role": "system"} if message.get("role") == "developer" else {}


def _content(content: Any) -> Any:
  if not isinstance(content, list):
    return content
  parts = [part if isinstance(part, dict) else {} for part in content]
  if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
    raise InputError(f"content={short(content)}: only items of type text can be read")
  return "".join(part["text"] for part in parts)


def _stop(name: str, value: Any) -> tuple[str, ...]:
  made = stops(value)
  if len(made) > MOST_STOPS or any(len(text) > 256 for text in made):
    raise InputError(f"{name}: at most {MOST_STOPS} texts of at most 256 characters")
  return made


def _seed(name: str, value: Any) -> int:
  return whole(name, value, most=LARGEST_SEED)


def text(name: str, value: Any) -> str:
  """A field that is a text."""
  if not isinstance(value, str):
    raise InputError(f"{name}={short(value)}: must be a text")
  return value


def flag(name: str, value: Any) -> bool:
  """A field that is true or false."""
  if not isinstance(value, bool):
    raise InputError(f"{name}={short(value)}: must be true or false")
  return value


def name_of(name: str, value: Any) -> str:
  """The name of a session."""
  if len(text(name, value)) > MOST_NAME or not value.isprintable():
    raise InputError(f"{name}: at most {MOST_NAME} characters that can be printed")
  return value


def printable(name: str) -> str:
  """The name of a file, changed to a valid name of a session."""
  return "".join(c if c.isprintable() else " " for c in name)[:MOST_NAME]


def _object(name: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise InputError(f"{name}={short(value)}: must be an object")
  return value


def _no_number(text: str) -> Iterator[None]:
  raise ValueError(f"{text} is not a number of JSON")
