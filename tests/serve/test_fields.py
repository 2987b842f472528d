"""The fields of requests: what is taken, and that an error names the field."""

import json

import pytest

from infini_jax.config import InputError
from infini_jax.serve.errors import ApiError, of
from infini_jax.serve.fields import asking, parse
from infini_jax.serve.limits import Limits

LIMITS = Limits(tokens=100)


def ask(kind="completion", **body):
  return asking(kind, parse(json.dumps(body).encode()), "tiny", LIMITS)


def wrong(kind="completion", **body):
  with pytest.raises(ApiError) as caught:
    ask(kind, **body)
  return caught.value


def test_the_defaults_are_those_of_openai():
  asked = ask()
  assert (asked.tokens, asked.how.temperature, asked.how.top_p, asked.prompt) == (16, 1, 1, "")
  assert ask("chat", messages=[]).tokens == 100
  assert len({ask().seed for _ in range(5)}) > 1 and ask(seed=7).seed == 7


def test_null_is_as_if_it_was_not_there():
  asked = ask(max_tokens=None, stop=None, session=None, unknown=None, temperature=0.5)
  assert asked.tokens == 16 and asked.how.temperature == 0.5


def test_prompts_and_messages_have_several_forms():
  assert ask(prompt=["one"]).prompt == "one" and ask(prompt=[1, 2]).prompt == [1, 2]
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
  (message,) = ask("chat", messages=[{"role": "user", "content": parts}]).messages
  assert message["content"] == "ab"
  (message,) = ask("chat", messages=[{"role": "developer", "content": "a"}]).messages
  assert message["role"] == "system"
  assert ask(stop="x").stop == ("x",) and ask(stop=["x", "y"]).stop == ("x", "y")


@pytest.mark.parametrize(
  "body, param, code",
  [
    ({"n": 2}, "n", "unsupported"),
    ({"tools": [{}]}, "tools", "unsupported"),
    ({"temprature": 1}, "temprature", "unknown_field"),
    ({"max_tokens": 101}, "max_tokens", "too_many_tokens"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"model": "other"}, "model", "model_not_found"),
    ({"fork": True}, "fork", "invalid_value"),
    ({"messages": []}, "messages", "unknown_field"),
    ({"logprobs": 6}, "logprobs", "invalid_value"),
  ],
)
def test_an_error_names_the_field(body, param, code):
  error = wrong(**body)
  assert (error.param, error.code) == (param, code) and param in error.message


def test_fields_that_change_nothing_are_taken():
  ask(
    n=1, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, user="me", tools=[], echo=False
  )
  ask("chat", messages=[], safety_identifier="me", prompt_cache_key="mine", store=False)


@pytest.mark.parametrize(
  "body", [b"", b"[1]", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 9999]
)
def test_what_is_no_json_object_is_refused(body):
  with pytest.raises(ApiError) as caught:
    parse(body)
  assert caught.value.code == "bad_json"


def test_limits_name_their_flag():
  with pytest.raises(InputError, match="--in-memory=0: must be at least 1"):
    Limits(in_memory=0)


def test_an_unknown_error_tells_nothing_of_the_inside():
  told = of(RuntimeError("/home/me/secret"))
  assert told.status == 500 and "secret" not in json.dumps(told.body())
  assert of(InputError("x=1: wrong; try 2")).message == "x=1: wrong; try 2"
