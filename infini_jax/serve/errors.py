"""Errors of the API, in the form that OpenAI's clients expect."""

import contextlib
from collections.abc import Iterator
from typing import Any

from infini_jax.config import InputError

# The types of errors by status; any other one is "invalid_request_error".
TYPES = {
  401: "authentication_error",
  403: "permission_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "server_error",
  504: "timeout_error",
  507: "insufficient_storage_error",
}


class ApiError(Exception):
  """An error that a client gets.

  Args:
    status: of HTTP.
    message: one line with the thing, the value and the remedy.
    code: a word for programs.
    param: the field of the request that is wrong.
  """

  def __init__(self, status: int, message: str, code: str, param: str | None = None):
    super().__init__(message)
    self.status, self.message, self.code, self.param = status, message, code, param

  def body(self) -> dict[str, Any]:
    """The object that is sent."""
    kind = TYPES.get(self.status, "invalid_request_error")
    about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
    return {"error": about}


@contextlib.contextmanager
def about(param: str) -> Iterator[None]:
  """Raises a wrong input of the body as an `ApiError` about this field."""
  try:
    yield
  except InputError as error:
    raise of(error, param) from None


class Cancelled(Exception):
  """The client has disconnected, so the result of a request is not needed."""


def of(error: BaseException, param: str | None = None) -> ApiError:
  """Converts any error to one of the API, without details of the server.

  Args:
    error: any.
    param: the field that a wrong input is in, where the error itself does not name it.
  """
  if isinstance(error, ApiError):
    return error
  if isinstance(error, InputError):
    return ApiError(400, " ".join(str(error).split()), "invalid_value", param)
  return ApiError(500, "an error inside of the server; its log has the reason", "internal_error")
