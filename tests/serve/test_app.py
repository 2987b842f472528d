"""The routes, by starlette's client: every one of them once, and what each refuses."""

import json

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx")

from starlette.testclient import TestClient  # noqa: E402

from infini_jax.inference import Session  # noqa: E402
from infini_jax.serve.app import make_app  # noqa: E402
from infini_jax.serve.guard import Keys  # noqa: E402
from infini_jax.serve.limits import Limits  # noqa: E402
from infini_jax.serve.service import Service  # noqa: E402
from tests.serve.models import opened, write_run  # noqa: E402

TEXT = "The first line of a small book.\nIt has a second one, too.\n" * 5
KEYS = ("key-of-the-first-user", "key-of-the-second-user")
FIRST, SECOND = ({"authorization": f"Bearer {key}"} for key in KEYS)
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return opened(write_run(tmp_path_factory.mktemp("serve") / "run"))


@pytest.fixture(scope="module")
def service(run, tmp_path_factory):
  limits = Limits(lanes=3, in_memory=2, sessions=30, tokens=50, body_mb=1)
  service = Service(run, "tiny", tmp_path_factory.mktemp("sessions"), limits)
  yield service
  service.close()


@pytest.fixture(scope="module")
def client(service):
  with TestClient(make_app(service, Keys(KEYS), ("testserver",))) as client:
    client.headers.update(FIRST)
    yield client


def made(client, text=TEXT, **fields):
  answer = client.post("/v1/sessions", json={"text": text, **fields})
  assert answer.status_code == 200, answer.text
  return answer.json()


def events(answer):
  assert answer.status_code == 200, answer.text
  lines = [line for line in answer.text.split("\n\n") if line]
  assert all(line.startswith("data: ") for line in lines)
  assert lines[-1] == "data: [DONE]"
  return [json.loads(line[6:]) for line in lines[:-1]]


def error(answer, status):
  assert answer.status_code == status, answer.text
  told = answer.json()["error"]
  assert set(told) == {"message", "type", "param", "code"} and told["message"]
  return told


def test_nothing_is_compiled_after_the_start(client, service):
  """The first test, so that no other one has compiled what the start left out."""
  before = service.metrics.compiled
  first, second, _ = (made(client, TEXT[:size])["id"] for size in (40, 90, 200))
  ask = lambda **fields: client.post("/v1/completions", json={"max_tokens": 20, **fields})
  ask(prompt=TEXT[:77], seed=3, logprobs=1, top_k=5, top_p=0.9, repetition_penalty=1.2)
  for more in ({}, {"fork": True}, {"temperature": 0}):  # in memory, and loaded from the disk
    ask(prompt="x" * 30, session=first, **more)
    ask(prompt="y", session=second, **more)
  client.post(f"/v1/sessions/{first}/fork")
  ask(prompt="")
  assert service.metrics.compiled == before
  text = client.get("/metrics").text
  assert "infini_jax_written_tokens_total" in text and "infini_jax_sessions " in text


def test_a_completion_is_what_a_session_writes(client, run):
  session = Session(run)
  session.read(TEXT)
  pieces = [*session.generate(6, temperature=0.0)]
  answer = client.post("/v1/completions", json={"prompt": TEXT, **GREEDY}).json()
  (choice,) = answer["choices"]
  assert choice["text"] == "".join(piece.text for piece in pieces)
  assert choice["finish_reason"] in ("length", "stop") and answer["object"] == "text_completion"
  assert answer["usage"]["total_tokens"] == session.positions[0]
  assert answer["usage"]["completion_tokens"] == len(pieces)


def test_a_stream_has_the_same_text_and_usage(client):
  body = {"prompt": TEXT, **GREEDY, "logprobs": 2}
  whole = client.post("/v1/completions", json=body).json()
  options = {"stream": True, "stream_options": {"include_usage": True}}
  *chunks, last = events(client.post("/v1/completions", json=body | options))
  (choice,) = whole["choices"]
  assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
  assert last["usage"] == whole["usage"] and last["choices"] == []
  assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
  told = [chunk["choices"][0]["logprobs"]["token_logprobs"] for chunk in chunks]
  assert sum(told, []) == choice["logprobs"]["token_logprobs"]


def test_an_answer_of_a_chat_is_that_of_a_session(client, run):
  session, said = Session(run), []
  talk = [{"role": "user", "content": "Who?"}]
  session.chat(talk, said.append, temperature=0.0, tokens=6)
  body = {"model": "tiny", "messages": talk, "temperature": 0, "max_completion_tokens": 6}
  answer = client.post("/v1/chat/completions", json=body).json()
  assert answer["choices"][0]["message"]["content"] == "".join(said)
  *chunks, _ = [*events(client.post("/v1/chat/completions", json=body | {"stream": True})), None]
  assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
  text = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
  assert "".join(text) == "".join(said)


def test_a_session_is_read_once_and_asked_twice(client, run):
  kept = made(client, name="book")
  session = Session(run)
  session.read(TEXT)
  assert kept["tokens"] == session.positions[0] and kept["kept"] and kept["name"] == "book"
  for _ in range(2):
    body = {"session": kept["id"], "fork": True, "prompt": "And", **GREEDY}
    answer = client.post("/v1/completions", json=body).json()
    fork = session.fork()
    fork.read("And")
    text = "".join(piece.text for piece in fork.generate(6, temperature=0.0))
    assert answer["choices"][0]["text"] == text and answer["session"] == kept["id"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == session.positions[0]
  assert client.get(f"/v1/sessions/{kept['id']}").json()["tokens"] == session.positions[0]


def test_a_session_reads_on(client, run):
  kept, session = made(client, "One. "), Session(run)
  session.read("One. ")
  for prompt in ("Two. ", "Three. "):
    body = {"session": kept["id"], "prompt": prompt, **GREEDY}
    answer = client.post("/v1/completions", json=body).json()
    session.read(prompt)
    text = "".join(piece.text for piece in session.generate(6, temperature=0.0))
    assert answer["choices"][0]["text"] == text
    assert client.get(f"/v1/sessions/{kept['id']}").json()["tokens"] == session.positions[0]


def test_a_conversation_follows_a_text_and_goes_on(client):
  kept = made(client)
  talk = [{"role": "user", "content": "Who?"}]
  ask = lambda talk, **more: client.post(
    "/v1/chat/completions", json={"messages": talk, "session": kept["id"], **GREEDY, **more}
  )
  first = ask(talk).json()
  assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == kept["tokens"]
  told = error(ask([{"role": "user", "content": "Another?"}]), 400)
  assert "another conversation" in told["message"]


@pytest.mark.parametrize("answer", ["", "\n"])
def test_a_conversation_goes_on_after_an_empty_answer(client, answer):
  talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
  talk.append({"role": "user", "content": "And?"})
  said = client.post("/v1/chat/completions", json={"messages": talk, **GREEDY})
  assert said.status_code == 200, said.text


def test_reading_tells_how_far_it_is(client):
  *told, last = events(client.post("/v1/sessions", json={"text": TEXT, "stream": True}))
  assert last["object"] == "session" and last["kept"]
  tokens = [each["tokens"] for each in told]
  assert tokens == sorted(tokens) and tokens[-1] == last["tokens"] - 1 and len(tokens) > 3
  assert told[-1]["share"] == 1.0


def test_a_file_comes_as_a_form_or_as_itself(client):
  want = made(client)["tokens"]
  form = client.post("/v1/sessions", files={"file": ("a.txt", TEXT.encode())}, data={"stream": "0"})
  assert (form.json()["tokens"], form.json()["name"]) == (want, "a.txt")
  how = {"content-type": "text/plain"}
  plain = client.post("/v1/sessions?name=b", content=TEXT.encode(), headers=how).json()
  assert (plain["tokens"], plain["name"]) == (want, "b")
  told = error(client.post("/v1/sessions", content=b"a\xff\xfe", headers=how), 400)
  assert "UTF-8" in told["message"]


def test_null_is_as_if_a_field_of_a_session_was_not_there(client):
  kept = made(client, name=None, stream=None)
  assert kept["name"] == ""
  answer = client.post(f"/v1/sessions/{kept['id']}/fork", json={"name": None})
  assert answer.json()["name"] == ""
  told = error(client.post("/v1/sessions", json={"text": None}), 400)
  assert (told["code"], told["param"]) == ("missing", "text")


@pytest.mark.parametrize("content", [b"caf\xe9", b"a\0b"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_file_that_is_no_text_is_named(client, content, stream):
  form = {"files": {"file": ("book.txt", content)}, "data": {"stream": stream}}
  assert error(client.post("/v1/sessions", **form), 400)["message"].startswith("book.txt: ")
  answer = client.post("/v1/sessions", content=content, headers={"content-type": "text/plain"})
  assert error(answer, 400)["message"].startswith("the text: ")


def test_any_name_of_a_file_becomes_one_of_a_session(client):
  name = "at 3\u202fpm\n" + "x" * 300
  kept = client.post("/v1/sessions", files={"file": (name, b"text")}).json()
  assert kept["name"].startswith("at 3 pm") and len(kept["name"]) == 200


def test_a_form_that_is_none_is_a_wrong_value(client):
  headers = {"content-type": "multipart/form-data; boundary=x"}
  answer = client.post("/v1/sessions", content=b"no form", headers=headers)
  assert error(answer, 400)["code"] == "invalid_value"


@pytest.mark.parametrize(
  "path, body, param",
  [
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": [{"role": "bot", "content": "a"}]}, "messages"),
    ("completions", {"prompt": [99_999]}, "prompt"),
    ("completions", {"prompt": [99_999], "stream": True}, "prompt"),
    ("scores", {"prompt": [99_999], "tokens": [5]}, "prompt"),
    ("scores", {"messages": [], "tokens": [5]}, "messages"),
  ],
)
def test_an_error_of_what_is_read_names_its_field(client, path, body, param):
  assert error(client.post(f"/v1/{path}", json=body), 400)["param"] == param


def test_the_file_of_a_session_that_is_damaged_or_gone(client, service):
  first = made(client)
  for _ in range(service.limits.in_memory):
    made(client)  # so that it is on the disk alone
  for change in (lambda file: file.write_bytes(b"no state"), lambda file: file.unlink()):
    change(service.sessions.file(first["id"], Keys(KEYS).owner(FIRST["authorization"])))
    answer = client.post("/v1/completions", json={"session": first["id"], "prompt": "a"})
    told = error(answer, 500)
    assert told["code"] == "session_lost" and "/" not in told["message"]
  assert error(client.get(f"/v1/sessions/{first['id']}/state"), 500)["code"] == "session_lost"
  assert client.delete(f"/v1/sessions/{first['id']}").status_code == 200


def test_a_state_goes_out_and_comes_back(client):
  kept = made(client)
  state = client.get(f"/v1/sessions/{kept['id']}/state").content
  how = {"content-type": "application/octet-stream"}
  back = client.post("/v1/sessions/state?name=moved", content=state, headers=how).json()
  assert back["tokens"] == kept["tokens"] and back["id"] != kept["id"]
  ask = lambda id: client.post(
    "/v1/completions", json={"session": id, "fork": True, "prompt": "x", **GREEDY}
  )
  texts = [ask(id).json()["choices"][0]["text"] for id in (kept["id"], back["id"])]
  assert texts[0] == texts[1]
  for wrong in (b"", state[:-9], state[:300] + b"x" + state[301:], b"\xff" * 400):
    told = error(client.post("/v1/sessions/state", content=wrong, headers=how), 400)
    assert told["code"] == "wrong_state" and "/tmp" not in told["message"]


def test_sessions_are_forked_listed_and_removed(client):
  kept = made(client, name="a")
  fork = client.post(f"/v1/sessions/{kept['id']}/fork", json={"name": "b"}).json()
  assert fork["tokens"] == kept["tokens"] and fork["id"] != kept["id"]
  told = error(client.post(f"/v1/sessions/{kept['id']}/fork", json={"nam": "b"}), 400)
  assert (told["code"], told["param"]) == ("unknown_field", "nam")
  ids = [each["id"] for each in client.get("/v1/sessions").json()["data"]]
  assert {kept["id"], fork["id"]} <= set(ids)
  assert client.delete(f"/v1/sessions/{kept['id']}").json()["deleted"]
  error(client.get(f"/v1/sessions/{kept['id']}"), 404)
  assert client.get(f"/v1/sessions/{fork['id']}").status_code == 200


def test_nobody_sees_the_session_of_another_key(client):
  id = made(client)["id"]
  assert client.get("/v1/sessions", headers=SECOND).json()["data"] == []
  for method, path in (
    ("GET", f"/v1/sessions/{id}"),
    ("GET", f"/v1/sessions/{id}/state"),
    ("POST", f"/v1/sessions/{id}/fork"),
    ("DELETE", f"/v1/sessions/{id}"),
  ):
    error(client.request(method, path, headers=SECOND), 404)
  body = {"prompt": "x", "session": id, **GREEDY}
  error(client.post("/v1/completions", json=body, headers=SECOND), 404)
  for wrong in ("", "Bearer", "Bearer wrong", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x"):
    told = error(client.get("/v1/sessions", headers={"authorization": wrong}), 401)
    assert told["type"] == "authentication_error"


def test_health_and_the_model_are_told(client):
  assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
  (model,) = client.get("/v1/models").json()["data"]
  assert model["id"] == "tiny" and model["chat"] and model == client.get("/v1/models/tiny").json()
  assert error(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
  assert error(client.get("/none"), 404)["code"] == "no_route"
  error(client.delete("/v1/models"), 405)


def test_limits_are_refused_with_their_names(client):
  large = client.post("/v1/completions", json={"prompt": "x" * 1_100_000})
  assert "--body-mb" in error(large, 413)["message"]
  many = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 51})
  assert "--tokens" in error(many, 400)["message"]
  assert error(client.get("/health", headers={"host": "evil.example"}), 403)["code"] == "wrong_host"
  foreign = client.post("/v1/completions", json={}, headers={"origin": "https://evil.example"})
  assert error(foreign, 403)["code"] == "wrong_origin"


@pytest.mark.parametrize(
  "content",
  [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"[" * 50_000],
)
def test_a_body_that_is_no_json_is_refused(client, content):
  for path in ("/v1/completions", "/v1/chat/completions", "/v1/sessions"):
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert error(answer, 400)["code"] == "bad_json"


def test_paths_and_ids_that_are_nearly_right_lead_nowhere(client):
  id = made(client)["id"]
  for wrong in (
    id[:-1],
    id + "x",
    f"../{id}",
    f"{id}.state",
    "..%2f..%2frun.json",
    "%00",
    "sess_*",
  ):
    for path in (f"/v1/sessions/{wrong}", f"/v1/sessions/{wrong}/state"):
      error(client.get(path), 404)


def test_many_requests_leave_nothing_behind(client, service):
  """As in test_soak.py, which asks ten thousand times."""
  before, compiled = len(service.sessions), service.metrics.compiled
  for i in range(40):
    id = made(client, "x" * (3 * i))["id"]
    body = {"prompt": "y" * i, "max_tokens": 1 + i % 5, "stream": i % 3 == 0, "seed": i}
    for more in ({}, {"session": id, "fork": True}, {"session": id}, {"wrong": 1}):
      client.post("/v1/completions", json=body | more)
    assert client.delete(f"/v1/sessions/{id}").status_code == 200
  assert len(service.sessions) == before and service.metrics.compiled == compiled
  assert service.scheduler.counts() == {"waiting": 0, "reading": 0, "writing": 0}
