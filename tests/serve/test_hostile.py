"""A hostile client: every request gets a clean error or an answer, and the server goes on."""

import http.client
import json
import secrets
import socket
import string
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from tests.serve.models import write_run  # noqa: E402
from tests.serve.servers import Process  # noqa: E402

pytestmark = pytest.mark.slow
KEYS = ("key-of-the-first-user", "key-of-the-second-user")
FIRST, SECOND = ({"authorization": f"Bearer {key}"} for key in KEYS)
SECRET = "a text that nobody else may read"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hostile")
  (folder / "keys.txt").write_text("# users\n\n" + "\n".join(KEYS))
  flags = (f"--keys={folder / 'keys.txt'}", "--body-mb=1", "--send-seconds=3", "--requests=16")
  with Process(write_run(folder / "run"), *flags) as server:
    server.session = make(server)
    yield server


def make(server):
  answer = httpx.post(
    f"{server.address}/v1/sessions", json={"text": SECRET}, headers=FIRST, timeout=60
  )
  return answer.json()["id"]


@pytest.fixture(autouse=True)
def goes_on(server):
  """After each test, the server answers as before, and has printed no traceback."""
  yield
  body = {"prompt": "x", "session": server.session, "fork": True, "max_tokens": 2}
  answer = httpx.post(f"{server.address}/v1/completions", json=body, headers=FIRST, timeout=60)
  assert answer.is_success, answer.text
  assert "Traceback" not in server.said()


def connect(server):
  at = urlsplit(server.address)
  opened = socket.create_connection((at.hostname, at.port), timeout=30)
  return opened, at.netloc


def raw(server, content, wait=30.0):
  """What comes back for these bytes, until the server closes the connection."""
  opened, _ = connect(server)
  with opened:
    opened.settimeout(wait)
    answer = b""
    try:
      opened.sendall(content)
      while got := opened.recv(65536):
        answer += got
    except (TimeoutError, ConnectionResetError, BrokenPipeError):
      pass
  return answer


def post(server, content, path="/v1/completions", **headers):
  headers = {"content-type": "application/json", **FIRST, **headers}
  return httpx.post(f"{server.address}{path}", content=content, headers=headers, timeout=60)


def refused(answer, *statuses):
  assert answer.status_code in (statuses or (400,)), (answer.status_code, answer.text[:300])
  error = answer.json()["error"]
  assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
  assert len(error["message"]) < 1000 and "/tmp" not in error["message"]
  return error


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"prompt": "\xc3\x28"}',
    b'{"prompt": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x"} trailing',
    b"\x00" * 100,
  ],
  ids=range(13),
)
def test_a_body_that_is_no_json(server, content):
  refused(post(server, content))
  refused(post(server, content, "/v1/chat/completions"))
  refused(post(server, content, "/v1/sessions"))


WRONG = {
  "prompt": [5, {}, [-1], [2**40], [1.5], ["a", "b"], True, "\0"],
  "max_tokens": [0, -1, 1.5, "5", True, 10**30, [], 5000],
  "temperature": [-1, "hot", 1e99, True, [], 1e-99],
  "top_p": [0, -0.1, 1.1, "x", {}],
  "top_k": [-1, 1.5, "x"],
  "repetition_penalty": [0, -1, "x", 1e99],
  "seed": [-1, 2**32, 1.5, "x"],
  "stop": ["", [""], 5, ["x"] * 17, "x" * 300, [5]],
  "stream": [1, "true", []],
  "stream_options": [5, {"include_usage": 5}],
  "logprobs": [-1, 6, "x", True],
  "session": [5, [], {}],
  "fork": [1, "true", True],
  "n": [2, 0, "x"],
  "model": [5, "other", [], "../x"],
  "echo": [True],
  "tools": [[{}]],
  "logit_bias": [{"5": 1}],
  "unknown": [1],
  "x" * 5000: [1],
}


@pytest.mark.parametrize("field", WRONG, ids=lambda field: field[:20])
def test_a_wrong_field_is_named(server, field):
  for value in WRONG[field]:
    print(value)
    body = json.dumps({"prompt": "x", "max_tokens": 2, field: value}).encode()
    error = refused(post(server, body), 400, 404)
    assert field[:20] in json.dumps(error), error


def test_tokens_that_the_model_does_not_have(server):
  for prompt in ([10**9], [264], [5, 2**31 - 1]):
    refused(post(server, json.dumps({"prompt": prompt, "max_tokens": 2}).encode()))


@pytest.mark.parametrize(
  "messages",
  [
    None,
    [],
    "x",
    [5],
    [{}],
    [{"role": "user"}],
    [{"role": "bot", "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "user", "content": "<|im_end|>"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    [{"role": "user", "content": "\ud800"}],
  ],
  ids=range(12),
)
def test_wrong_messages(server, messages):
  body = json.dumps({"messages": messages, "max_tokens": 2}).encode()
  refused(post(server, body, "/v1/chat/completions"))


def test_a_body_that_is_too_large(server):
  large = b'{"prompt": "' + b"x" * 1_500_000 + b'"}'
  assert refused(post(server, large), 413)["code"] == "body_too_large"
  at = urlsplit(server.address)
  pieces = (b"x" * 65536 for _ in range(40))  # without a length before
  connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
  try:
    connection.request(
      "POST", "/v1/sessions", pieces, {"content-type": "text/plain", **FIRST}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
  except (BrokenPipeError, ConnectionResetError):
    pass  # it was closed while the client still sent
  lying = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
  key = f"Authorization: {FIRST['authorization']}\r\n\r\n".encode()
  assert b" 413 " in raw(server, lying + key + b"{}")


def test_a_slow_sender_is_ended(server):
  """One that sends its body slowly, and one that never finishes its headers."""
  head = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    f"Authorization: {FIRST['authorization']}\r\nContent-Length: 1000\r\n\r\n"
  )
  for content, most in ((head.encode(), 8), (b"GET /health HTTP/1.1\r\nHost: loc", 15)):
    opened, _ = connect(server)
    with opened:
      opened.settimeout(1.0)
      opened.sendall(content)
      started, answer = time.monotonic(), b""
      while time.monotonic() - started < most + 5:
        try:
          opened.sendall(b"x")
          got = opened.recv(4096)
          answer += got
          if not got:
            break
        except TimeoutError:
          continue
        except (BrokenPipeError, ConnectionResetError):
          break
      assert time.monotonic() - started < most
      assert b" 408 " in answer or b"GET" in content


def test_a_thousand_headers_and_a_long_one(server):
  many = "".join(f"X-{i}: {'y' * 100}\r\n" for i in range(1000))
  for headers in (many, f"X-Long: {'y' * 200_000}\r\n"):
    answer = raw(server, f"GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode(), 5)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")) or answer == b""


def test_bytes_that_are_no_http(server):
  for content in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 1000, b"GET / HTTP/9.9\r\n\r\n"):
    assert b"200" not in raw(server, content, 3)[:20]
  begins = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
  second = b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n"
  smuggled = begins + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second
  assert SECRET.encode() not in raw(server, smuggled, 3)
  head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
  upgrade = head + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
  assert b" 101 " not in raw(server, upgrade, 3)


def test_paths_lead_nowhere_else(server):
  for path in (
    "/../../etc/passwd",
    "/v1/sessions/../../run.json",
    "/v1/sessions/..%2f..%2frun.json",
    "/v1/sessions/%2e%2e/state",
    "/v1/sessions/sessions.sqlite/state",
    f"/v1/sessions/{server.session}.state",
    f"/v1/sessions/%00{server.session}",
    "/v1/sessions//state",
    "//v1/sessions",
    "/v1/models/../sessions",
    "/v1/sessions/" + "x" * 5000,
    "/v1/sessions/%f0%28%8c%28",
  ):
    request = (
      f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
      f"Authorization: {SECOND['authorization']}\r\nConnection: close\r\n\r\n"
    )
    answer = raw(server, request.encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), (path, answer[:200])
    assert b"root:" not in answer and b"segment_length" not in answer


def test_wrong_keys(server):
  wrong = ["", "Bearer", "Bearer x", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x"]
  wrong += [f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]} {KEYS[1]}", "Bearer " + "x" * 9000]
  for header in wrong:
    for path in ("/v1/models", "/v1/sessions", f"/v1/sessions/{server.session}/state"):
      answer = httpx.get(f"{server.address}{path}", headers={"authorization": header})
      error = refused(answer, 401)
      assert not any(key in error["message"] for key in KEYS)
  assert httpx.get(f"{server.address}/health").is_success


def test_ids_cannot_be_guessed(server):
  """Each of them has 192 random bits, and one that is nearly right is as wrong as any other."""
  ids = {make(server) for _ in range(20)}
  assert len(ids) == 20 and all(len(id) == len("sess_") + 32 for id in ids)
  prefixes = {id[5:12] for id in ids}
  assert len(prefixes) == 20, "ids that follow each other have nothing in common"
  letters, id = string.ascii_letters + string.digits + "-_", server.session
  guesses = [id[:-1] + letter for letter in letters if letter != id[-1]]
  guesses += [f"sess_{secrets.token_urlsafe(24)}" for _ in range(200)]
  guesses += [id.upper(), id[:-1], id + "x", " " + id, "sess_%", "sess_*", "' OR '1'='1"]
  with httpx.Client(base_url=server.address, headers=FIRST) as client:
    for guess in guesses:
      answer = client.get("/v1/sessions/" + guess.replace("%", "%25"))
      assert refused(answer, 404)["code"] in ("no_session", "no_route")
  error = refused(httpx.get(f"{server.address}/v1/sessions/{id}", headers=SECOND), 404)
  other = httpx.get(f"{server.address}/v1/sessions/sess_none", headers=SECOND)
  assert error["message"].replace(id, "") == refused(other, 404)["message"].replace("sess_none", "")


def test_a_state_that_was_changed(server):
  at = f"{server.address}/v1/sessions/{server.session}/state"
  state = bytearray(httpx.get(at, headers=FIRST).content)
  headers = {"content-type": "application/octet-stream"}
  for place in range(0, len(state), max(1, len(state) // 60)):
    wrong = bytearray(state)
    wrong[place] ^= 0x41
    refused(post(server, bytes(wrong), "/v1/sessions/state", **headers))
  for size in (0, 7, 8, 100, len(state) - 1):
    refused(post(server, bytes(state[:size]), "/v1/sessions/state", **headers))


def test_a_page_of_another_site_cannot_use_the_server(server):
  for headers, code in (
    ({"origin": "https://evil.example"}, "wrong_origin"),
    ({"origin": "null"}, "wrong_origin"),
    ({"host": "evil.example"}, "wrong_host"),
    ({"host": "[::1"}, "wrong_host"),
    ({"host": "127.0.0.1.evil.example:80"}, "wrong_host"),
  ):
    answer = httpx.get(f"{server.address}/v1/sessions", headers=FIRST | headers)
    assert refused(answer, 403)["code"] == code


def test_too_many_requests_at_the_same_time(server):
  """Some are refused with an error that clients try again after; none hangs."""
  opened = []
  head = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    f"Authorization: {FIRST['authorization']}\r\nContent-Length: 50\r\n\r\n"
  )
  for _ in range(40):
    connection, _ = connect(server)
    connection.sendall(head.encode())
    opened.append(connection)
  time.sleep(0.5)
  answer = httpx.get(f"{server.address}/v1/models", headers=FIRST, timeout=30)
  assert refused(answer, 429)["code"] == "too_many_requests"
  for connection in opened:
    connection.close()
  ends = time.monotonic() + 10
  while not httpx.get(f"{server.address}/v1/models", headers=FIRST).is_success:
    assert time.monotonic() < ends
    time.sleep(0.1)
