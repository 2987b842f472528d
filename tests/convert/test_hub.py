"""A folder is uploaded only when asked, by the hub's own client, to a stand-in of the hub."""

import base64
import http.server
import json
import threading

import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.convert import command, export, hub
from infini_jax.convert.memory import CODE
from tests.convert.reading import console
from tests.convert.test_memory import make_run


class Hub(http.server.BaseHTTPRequestHandler):
  """Answers as the hub does when a model is made and small files are committed to it."""

  def answer(self):
    """Answers one request, and keeps it."""
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    self.server.requests.append((self.command, self.path, body))
    here, status, content = f"http://{self.headers['Host']}/me/model", 200, {}
    if self.server.refuses and self.command == "POST":
      status, content = 401, {"error": "Invalid username or password."}
    elif self.path.endswith("/repos/create"):
      content = {"url": here, "id": "me/model"}
    elif "/preupload/" in self.path:
      file = lambda one: {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
      content = {"files": [file(one) for one in json.loads(body)["files"]]}
    elif "/commit/" in self.path:
      oid = "0" * 40
      content = {"success": True, "commitOid": oid, "commitUrl": f"{here}/commit/{oid}"}
    data = json.dumps(content).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  do_GET = do_POST = answer

  def log_message(self, *_):
    pass


@pytest.fixture
def server(monkeypatch):
  """The stand-in, to which the client's endpoint points."""
  from huggingface_hub import constants

  made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  made.requests, made.refuses = [], False
  threading.Thread(target=made.serve_forever, daemon=True).start()
  monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{made.server_port}")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
  yield made
  made.shutdown()
  made.server_close()


def run(*words):
  """Runs a conversion, given as on the command line."""
  import argparse

  parser = argparse.ArgumentParser()
  command.add_arguments(parser)
  command.convert(parser.parse_args([str(word) for word in words]), console())


def test_a_folder_is_uploaded_when_asked_and_never_else(rng, tmp_path, server):
  make_run(tmp_path / "run", rng)
  run("export", tmp_path / "run", tmp_path / "out", "--memory")
  assert server.requests == []
  run("export", tmp_path / "run", tmp_path / "again", "--memory", "--push=me/model")
  posts = {path: body for method, path, body in server.requests if method == "POST"}
  assert json.loads(posts["/api/repos/create"])["visibility"] == "private"
  lines = [json.loads(line) for line in posts["/api/models/me/model/commit/main"].splitlines()]
  sent = {
    line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"
  }
  there = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
  assert {name: base64.b64decode(content) for name, content in sent.items()} == there
  assert {"README.md", "config.json", *(file.name for file in CODE.glob("*.py"))} <= there.keys()


def test_what_the_hub_refuses_stays_on_disk(tmp_path, server):
  server.refuses = True
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "file.txt").write_text("text")
  with pytest.raises(
    InputError, match="is written, but --push=me/model failed .*hf upload"
  ) as error:
    hub.push(tmp_path / "out", "me/model", Console(quiet=True))
  assert "\n" not in str(error.value)
  assert (tmp_path / "out" / "file.txt").exists()


def test_a_wrong_name_is_refused_before_anything_is_done(tmp_path, server, monkeypatch):
  monkeypatch.setattr(export, "export", lambda *_: pytest.fail("the export began"))
  for name in ("model", "me/model/more", "http://me/model", "", "../model", "-me/model", "ü/model"):
    with pytest.raises(InputError, match=f"--push={name}: must be a name of the hub"):
      run("export", tmp_path / "run", tmp_path / "out", f"--push={name}")
  assert server.requests == []
