"""What every request passes first, without a server: size, speed, keys, hosts."""

import asyncio
import json

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from infini_jax.config import InputError  # noqa: E402
from infini_jax.serve.errors import ApiError  # noqa: E402
from infini_jax.serve.guard import Guard, Keys  # noqa: E402
from infini_jax.serve.limits import Limits  # noqa: E402
from infini_jax.serve.metrics import Metrics  # noqa: E402

KEY = "a-key-that-is-long-enough"
LIMITS = Limits(body_mb=1, send_seconds=0.2, requests=2)


async def app(scope, receive, send):
  """Reads the body, and answers with its size and the owner."""
  size, more = 0, True
  while more:
    message = await receive()
    size, more = size + len(message["body"]), message["more_body"]
  await send({"type": "http.response.start", "status": 200, "headers": []})
  body = json.dumps([size, scope["state"]["owner"]]).encode()
  await send({"type": "http.response.body", "body": body})


def ask(pieces=(b"",), path="/v1/x", keys=(), hosts=("localhost",), delay=0.0, **headers):
  """The status, the headers and the body of an answer."""
  sent, left = [], [*pieces]

  async def receive():
    await asyncio.sleep(delay)
    body = left.pop(0)
    return {"type": "http.request", "body": body, "more_body": bool(left)}

  async def send(message):
    sent.append(message)

  named = {"host": "localhost:8000", **headers}
  scope = {"type": "http", "path": path, "method": "POST"}
  scope["headers"] = [(name.replace("_", "-").encode(), x.encode()) for name, x in named.items()]
  metrics = Metrics()
  asyncio.run(Guard(app, Keys(keys), LIMITS, metrics, hosts)(scope, receive, send))
  metrics.close()
  start, body = sent
  return start["status"], dict(start["headers"]), json.loads(body["body"])


def code(answer):
  return answer[0], answer[2]["error"]["code"]


def test_a_body_passes_and_nobody_sniffs_or_stores_the_answer():
  status, headers, body = ask([b"abc", b"de"])
  assert status == 200 and body == [5, ""]
  assert headers[b"x-content-type-options"] == b"nosniff"
  assert headers[b"cache-control"] == b"no-store"


def test_a_large_body_is_refused_with_its_length_and_without():
  assert code(ask(content_length="1000001")) == (413, "body_too_large")
  assert code(ask([b"x" * 600_000, b"x" * 600_000, b""])) == (413, "body_too_large")
  assert ask([b"x" * 1_000_000])[0] == 200


def test_a_slow_body_is_refused():
  assert code(ask([b"x"] * 50, delay=0.05)) == (408, "too_slow")


def test_keys_make_owners():
  status, _, (_, owner) = ask(keys=[KEY, KEY + "2"], authorization=f"Bearer {KEY}")
  _, _, (_, other) = ask(keys=[KEY, KEY + "2"], authorization=f"bearer {KEY}2")
  assert status == 200 and owner and other and owner != other and KEY not in owner
  assert code(ask(keys=[KEY])) == (401, "no_key")
  assert code(ask(keys=[KEY], authorization="Bearer x")) == (401, "invalid_api_key")
  assert code(ask(keys=[KEY], authorization=f"Bearer {KEY}\u00e9")) == (401, "invalid_api_key")
  assert ask(keys=[KEY], path="/health")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "", "[", "localhost.evil.example:8000"])
def test_other_names_of_the_server_are_refused(host):
  assert code(ask(host=host)) == (403, "wrong_host")
  assert ask(host=host, hosts=())[0] == 200


def test_pages_of_other_sites_are_refused():
  assert code(ask(origin="https://evil.example")) == (403, "wrong_origin")
  assert code(ask(origin="null")) == (403, "wrong_origin")
  assert ask(origin="http://localhost:8000")[0] == 200


def test_keys_come_from_a_file(tmp_path):
  file = tmp_path / "keys"
  file.write_text(f"# mine\n\n{KEY}\n")
  assert Keys.of_file(file).owner(f"Bearer {KEY}") and not Keys()
  for content, said in ((b"", "holds no key"), (b"short\n", "key 1"), (b"\xff" * 20, "not UTF-8")):
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
      Keys.of_file(file)
    assert "short" not in str(caught.value).split("example")[0]
  with pytest.raises(InputError, match="none: No such file"):
    Keys.of_file(tmp_path / "none")
  with pytest.raises(ApiError):
    Keys([KEY]).owner(None)
