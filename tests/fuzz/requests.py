"""Damaged requests to the server: an error of one line, or an answer; never a failure inside."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from starlette.testclient import TestClient

from infini_jax.serve.app import make_app
from infini_jax.serve.guard import Keys
from infini_jax.serve.limits import Limits
from infini_jax.serve.service import Service
from tests.fuzz.files import mutated, other_json
from tests.serve.models import opened, write_run

SMALL = Limits(lanes=3, in_memory=2, sessions=20, tokens=8, body_mb=1)
WHAT = {"prompt": "one two three", "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
ASKED = {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "max_tokens": 3}
BODIES = {  # each is right
  "/v1/completions": WHAT | {"max_tokens": 4, "stop": ["x"], "logprobs": 2, "stream": True},
  "/v1/chat/completions": ASKED | {"stream": True, "stream_options": {"include_usage": True}},
  "/v1/sessions": {"text": "a text that is read", "name": "a", "stream": False},
  "/v1/scores": {"prompt": "a text that is", "tokens": [100, 101, 102]},
}
PATHS = ("/health", "/metrics", "/v1/models", "/v1/memory", "/v1/sessions")
RIGHT = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}
TYPES = ("application/json", "text/plain", "multipart/form-data; boundary=x", "", "application/x")

_clients: dict[Path, tuple[TestClient, str, bytes]] = {}


def case(rng: np.random.Generator, folder: Path) -> str:
  """One request with a few changes."""
  client, session, state = _client(folder)
  kind = str(rng.choice([*BODIES, "state", "path", "fork"]))
  if kind == "state":
    answer = client.post("/v1/sessions/state", content=mutated(rng, state), headers=BYTES)
  elif kind == "path":
    path = f"{rng.choice(PATHS)}/{session}/{rng.choice(['state', 'memory', 'fork', '', '..'])}"
    method = str(rng.choice(["GET", "POST", "PUT", "DELETE"]))
    answer = client.request(method, "/" + quote(mutated(rng, path.encode()).lstrip(b"/")))
  elif kind == "fork":
    answer = client.post(f"/v1/sessions/{session}/fork", content=mutated(rng, b'{"name": "b"}'))
  else:
    body = dict(BODIES[kind])
    if kind != "/v1/sessions" and rng.random() < 0.4:
      body |= {"session": session}
    headers = RIGHT if rng.random() < 0.8 else {"content-type": str(rng.choice(TYPES))}
    content = json.dumps(other_json(rng, body)).encode()
    if rng.random() < 0.5:
      content = mutated(rng, json.dumps(body).encode())
    answer = client.post(kind, content=content, headers=headers)
  outcome = _outcome(answer)
  kept = [each["id"] for each in client.get("/v1/sessions").json()["data"]]
  if session not in kept or len(kept) == SMALL.sessions:
    for each in kept:
      client.delete(f"/v1/sessions/{each}")
    _clients[folder] = (client, *_kept(client))
  return f"{kind}, {outcome}"


def _outcome(answer: Any) -> str:
  """What an answer is, if it is one that a client understands."""
  text = answer.text
  assert "Traceback" not in text, text
  if answer.status_code in (404, 405) and not text.startswith("{"):
    return "refused"
  if answer.status_code >= 400:
    assert answer.status_code < 500, f"{answer.status_code}: {text}"
    told = answer.json()["error"]
    assert told["message"] and "\n" not in told["message"], text
    return "refused"
  return "answered"


def _client(folder: Path) -> tuple[TestClient, str, bytes]:
  """A client of a server in this process, a session there, and a saved state; made once."""
  if folder not in _clients:
    root = folder / "server"
    root.mkdir()
    service = Service(opened(write_run(root / "run")), "tiny", root / "sessions", SMALL)
    client = TestClient(make_app(service, Keys(()), ("testserver",)))
    client.__enter__()  # its loop lives as long as this process
    _clients[folder] = (client, *_kept(client))
  return _clients[folder]


def _kept(client: TestClient) -> tuple[str, bytes]:
  """A new session and its state."""
  made = client.post("/v1/sessions", json={"text": "What was read before."})
  session = made.json()["id"]
  return session, client.get(f"/v1/sessions/{session}/state").content
