"""The page over HTTP, and what it asks for beside the API: the memory, scores, the report."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx")

from starlette.testclient import TestClient  # noqa: E402

from infini_jax.serve.app import make_app  # noqa: E402
from infini_jax.serve.guard import Keys  # noqa: E402
from infini_jax.serve.limits import Limits  # noqa: E402
from infini_jax.serve.pages import PARTS  # noqa: E402
from infini_jax.serve.service import Service  # noqa: E402
from tests.serve.models import opened, write_run  # noqa: E402

TEXT = "The first line of a small book.\nIt has a second one, too.\n" * 5
KEY = "a-key-that-is-long-enough"
TALK = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
  run = opened(write_run(tmp_path_factory.mktemp("pages") / "run"))
  service = Service(run, "tiny", tmp_path_factory.mktemp("sessions"), Limits(lanes=2, tokens=50))
  yield service
  service.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  return tmp_path_factory.mktemp("report") / "report.html"


@pytest.fixture(scope="module")
def client(service, file):
  with TestClient(make_app(service, Keys(), ("testserver",), file)) as client:
    yield client


def made(client, text=TEXT):
  return client.post("/v1/sessions", json={"text": text}).json()["id"]


@pytest.mark.parametrize("path", PARTS)
def test_each_part_loads_from_this_server_alone(client, path):
  answer = client.get(path)
  assert answer.status_code == 200 and "charset=utf-8" in answer.headers["content-type"]
  policy = answer.headers["content-security-policy"]
  assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
  assert not re.search(r"https?://|[^:]//\w+\.\w", answer.text)
  assert "innerHTML" not in answer.text and "style=" not in answer.text
  for name in re.findall(r'(?:src|href|from) ?=? ?"([^"#:]+)"', answer.text):
    assert name == "report" or f"/{name.removeprefix('./')}" in PARTS


def test_the_memory_of_a_session_and_the_gates(client, service):
  c = service.run.engine.config.model
  gates = np.array(client.get("/v1/memory").json()["gates"])
  assert gates.shape == (c.layers, c.heads) and ((0 <= gates) & (gates <= 1)).all()
  used = [
    np.array(client.get(f"/v1/sessions/{made(client, text)}/memory").json()["used"])
    for text in ("", TEXT)
  ]
  assert used[0].shape == (c.layers, c.kv_heads)
  assert (used[0] == 0).all() and (used[1] > 0).all() and (used[1] <= 1).all()
  assert client.get("/v1/sessions/sess_no/memory").status_code == 404


def test_progress_tells_how_much_of_the_memory_is_used(client):
  answer = client.post("/v1/sessions", json={"text": TEXT, "stream": True})
  told = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
  assert any("used" in event for event in told if event["object"] == "session.progress")


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_scores_are_the_logprobs_of_the_answer_and_compile_nothing(client, service, kind):
  chat = kind == "chat"
  path = "/v1/chat/completions" if chat else "/v1/completions"
  asked = {"messages": TALK} if chat else {"prompt": "Who?"}
  how = {"max_tokens": 12, "seed": 4, "logprobs": True if chat else 0}
  before = service.metrics.compiled
  for more in ({}, {"session": made(client)}):
    fork = {"fork": True} if more else {}
    (choice,) = client.post(path, json={**asked, **how, **more, **fork}).json()["choices"]
    told = choice["logprobs"]
    if chat:
      each = told["content"]
      ids, own = [one["token_id"] for one in each], [one["logprob"] for one in each]
    else:
      ids, own = told["token_ids"], told["token_logprobs"]
    scores = client.post("/v1/scores", json={**asked, **more, "tokens": ids})
    assert scores.status_code == 200, scores.text
    np.testing.assert_allclose(scores.json()["logprobs"], own, rtol=1e-4, atol=1e-4)
  assert service.metrics.compiled == before


@pytest.mark.parametrize(
  ("body", "code", "names"),
  [
    ({}, "invalid_value", "tokens"),
    ({"tokens": []}, "invalid_value", "tokens"),
    ({"tokens": [10**6]}, "invalid_value", "tokens"),
    ({"tokens": [True]}, "invalid_value", "tokens"),
    ({"tokens": [5] * 51}, "too_many_tokens", "tokens"),
    ({"tokens": [5], "seed": 1}, "unknown_field", "seed"),
    ({"tokens": [5], "session": "sess_no"}, "no_session", None),
  ],
)
def test_wrong_scores_are_refused(client, body, code, names):
  error = client.post("/v1/scores", json={"prompt": "x", **body}).json()["error"]
  assert (error["code"], error["param"]) == (code, names) and error["message"]


def test_the_report_is_served_where_there_is_one(client, file):
  assert client.get("/report").status_code == 404
  assert client.get("/v1/models").json()["data"][0]["report"] is False
  file.write_text("<!DOCTYPE html><p>A report.", "utf-8")
  answer = client.get("/report")
  assert answer.status_code == 200 and "A report." in answer.text
  policy = answer.headers["content-security-policy"]
  assert "default-src 'none'" in policy and "script-src" not in policy
  assert client.get("/v1/models").json()["data"][0]["report"] is True


def test_with_keys_the_page_is_open_and_all_else_is_not(service, file):
  with TestClient(make_app(service, Keys([KEY]), ("testserver",), file)) as client:
    assert all(client.get(path).status_code == 200 for path in PARTS)
    for path in ("/report", "/v1/memory", "/v1/sessions/sess_x/memory"):
      assert client.get(path).status_code == 401
    assert client.post("/v1/scores", json={}).status_code == 401
