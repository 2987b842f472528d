"""The server as a process: its end, a kill, other processes, wrong flags; and its real clients."""

import concurrent.futures
import json
import signal
import socket
import sqlite3
import subprocess
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from infini_jax import cli  # noqa: E402
from infini_jax.data import text_of  # noqa: E402
from infini_jax.inference import Session, open_run  # noqa: E402
from infini_jax.serve.sessions import INDEX  # noqa: E402
from tests.serve.models import write_run  # noqa: E402
from tests.serve.servers import Process  # noqa: E402

pytestmark = pytest.mark.slow
KEY = "a-key-that-is-long-enough"
TEXT = "A line of the text.\n" * 6


@pytest.fixture
def workdir(tmp_path):
  return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  folder = write_run(tmp_path_factory.mktemp("served") / "run")
  with Process(folder, "--lanes=4", "--body-mb=1", "--send-seconds=3", "--requests=16") as server:
    yield folder, server


def read(server, text=TEXT):
  answer = httpx.post(f"{server.address}/v1/sessions", json={"text": text}, timeout=60)
  assert answer.status_code == 200, answer.text
  return answer.json()


def test_a_killed_server_has_lost_no_session_that_it_reported(workdir):
  """It is killed while four clients make sessions and read on in them."""
  reported, lock, stop = {}, threading.Lock(), threading.Event()

  def work(address):
    with httpx.Client(base_url=address, timeout=60) as client:
      while not stop.is_set():
        try:
          made = client.post("/v1/sessions", json={"text": TEXT}).json()
          with lock:
            reported[made["id"]] = made["tokens"]
          for _ in range(3):
            body = {"session": made["id"], "prompt": "x", "max_tokens": 3, "temperature": 0}
            answer = client.post("/v1/completions", json=body).json()
            with lock:
              reported[made["id"]] = answer["usage"]["total_tokens"]
        except httpx.TransportError:
          return

  for delay in (0.5, 1.3, 2.1):
    with Process(workdir) as server:
      for id, tokens in reported.items():
        found = httpx.get(f"{server.address}/v1/sessions/{id}").json()
        assert found["tokens"] >= tokens  # what was on the disk, but not yet told, may be there
      for id in list(reported)[-2:]:
        body = {"session": id, "fork": True, "prompt": "x", "max_tokens": 3, "seed": 1}
        assert httpx.post(f"{server.address}/v1/completions", json=body, timeout=60).is_success
      stop.clear()
      with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for _ in range(4):
          threads.submit(work, server.address)
        time.sleep(delay)
        server.kill()
        stop.set()
  assert len(reported) > 4
  with Process(workdir, "--in-memory=1") as server:
    kept = httpx.get(f"{server.address}/v1/sessions").json()["data"]
    tokens = {each["id"]: each["tokens"] for each in kept}
    assert all(tokens[id] >= count for id, count in reported.items())
    for id in reported:
      body = {"session": id, "fork": True, "prompt": "x", "max_tokens": 2}
      assert httpx.post(f"{server.address}/v1/completions", json=body, timeout=60).is_success
    assert server.end() == 0
  left = {file.name for file in (workdir / "sessions").iterdir()} - {f"{INDEX}-journal"}
  assert left == {INDEX, *(f"{id}.state" for id in tokens)}


def test_sigterm_ends_streams_cleanly_and_keeps_the_sessions(workdir):
  with Process(workdir, "--grace=1") as server:
    kept = read(server)
    body = {"session": kept["id"], "prompt": "x", "max_tokens": 4096, "stream": True}
    seen = []
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as answer:
      for line in answer.iter_lines():
        seen.append(line)
        if len(seen) == 20:
          threading.Thread(target=server.end).start()
    told = [json.loads(line[6:]) for line in seen if line.startswith("data: {")]
    assert told[-1].get("error", {}).get("code") == "server_stops" or "[DONE]" in seen[-2]
    assert server.end() == 0 and "sessions are kept" in server.said()
  with Process(workdir) as server:
    (found,) = httpx.get(f"{server.address}/v1/sessions").json()["data"]
    assert found["id"] == kept["id"]
    assert server.end(signal.SIGINT) == 130


def test_greedy_text_is_that_of_a_session_alone_and_among_31_others(tmp_path):
  """32 sessions, read and asked at the same time, then each by itself."""
  folder = write_run(tmp_path / "run")
  run, tokens = open_run(folder), 40
  texts = [f"{i} " * (3 * i) + "and so on." for i in range(32)]
  want = []
  for text in texts:
    session = Session(run)
    session.read(text)
    session.read(" Then")
    want.append([piece.token for piece in session.generate(tokens, temperature=0.0)])
  with Process(folder, "--lanes=32", "--in-memory=8") as server:
    with httpx.Client(base_url=server.address, timeout=120) as client:
      made = lambda text: client.post("/v1/sessions", json={"text": text}).json()["id"]

      def written(id):
        body = {"session": id, "fork": True, "prompt": " Then", "temperature": 0, "logprobs": 2}
        answer = client.post("/v1/completions", json=body | {"max_tokens": tokens}).json()
        return answer["choices"][0]["text"], answer["choices"][0]["logprobs"]

      with concurrent.futures.ThreadPoolExecutor(32) as threads:
        ids = [*threads.map(made, texts)]
        together = [*threads.map(written, ids)]
      alone = [written(id) for id in ids]
  assert together == alone  # to the last bit of every probability
  for (_, told), ids in zip(together, want, strict=True):
    got, names = told["tokens"], [text_of(run.tokenizer, id) for id in ids]
    if got != names:  # rounding may decide between two tokens that are equally likely
      at = next(i for i, (a, b) in enumerate(zip(got, names, strict=False)) if a != b)
      first, second = told["top_logprobs"][at].values()
      assert abs(first - second) < 1e-5, (at, got, names)


def test_two_servers_do_not_share_a_folder(served, capsys):
  folder, _ = served
  assert cli.main(["serve", f"--workdir={folder}", "--port=0"]) == 2
  assert "end the other server" in capsys.readouterr().err


def test_the_openai_package(served):
  openai = pytest.importorskip("openai")
  _, server = served
  client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
  assert [model.id for model in client.models.list()] == ["run"]
  how = {"model": "run", "temperature": 0, "max_tokens": 8}
  whole = client.completions.create(prompt=TEXT, logprobs=2, **how)
  assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens)
  parts = [*client.completions.create(prompt=TEXT, stream=True, **how)]
  assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
  talk = [{"role": "user", "content": "Who?"}]
  answer = client.chat.completions.create(messages=talk, logprobs=True, top_logprobs=3, **how)
  (choice,) = answer.choices
  assert len(choice.logprobs.content) == answer.usage.completion_tokens
  assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)
  options = {"include_usage": True}
  chunks = [
    *client.chat.completions.create(messages=talk, stream=True, stream_options=options, **how)
  ]
  text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
  assert text == choice.message.content and chunks[-1].usage == answer.usage
  id = read(server)["id"]
  more = {"session": id, "fork": True}
  asked = client.completions.create(prompt="x", extra_body=more, **how)
  assert asked.usage.prompt_tokens_details.cached_tokens == read(server)["tokens"]
  with pytest.raises(openai.NotFoundError, match="there is 'run'"):
    client.completions.create(model="other", prompt="x")
  with pytest.raises(openai.BadRequestError) as caught:
    client.chat.completions.create(messages=talk, model="run", n=2)
  assert caught.value.param == "n" and caught.value.code == "unsupported"
  with pytest.raises(openai.NotFoundError):
    client.completions.create(prompt="x", extra_body={"session": "sess_none"}, **how)


def writing(server):
  """The number of lanes that write."""
  (line,) = [
    line
    for line in httpx.get(f"{server.address}/metrics").text.splitlines()
    if line.startswith("infini_jax_lanes_writing ")
  ]
  return float(line.split()[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_lane(served, stream):
  """What it left in its session is as before."""
  _, server = served
  kept = read(server)
  body = {"session": kept["id"], "prompt": "x", "max_tokens": 4000, "stream": stream}
  try:
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=1.5) as answer:
      for count, _ in enumerate(answer.iter_lines()):
        if count == 9:
          break
  except httpx.ReadTimeout:
    assert not stream
  ends = time.monotonic() + 10
  while writing(server) and time.monotonic() < ends:
    time.sleep(0.05)
  assert not writing(server)
  now = httpx.get(f"{server.address}/v1/sessions/{kept['id']}").json()
  if now["tokens"] == kept["tokens"]:  # else it was written before the client had gone
    assert not now["busy"]
  answer = httpx.post(f"{server.address}/v1/completions", json=body | {"max_tokens": 2}, timeout=60)
  assert answer.is_success or "session_ended" in answer.text


def test_curl(served, tmp_path):
  _, server = served
  (tmp_path / "book.txt").write_text(TEXT)

  def curl(*arguments):
    done = subprocess.run(
      ["curl", "-sS", "-m", "60", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  at = f"{server.address}/v1/sessions"
  *_, session, last = curl("-N", at, "-F", "file=@book.txt", "-F", "stream=true").split("\n\n")[:-1]
  kept = json.loads(session[6:])
  assert last == "data: [DONE]" and kept["name"] == "book.txt"
  plain = ["-H", "Content-Type: text/plain", "--data-binary", "@book.txt"]
  assert json.loads(curl(f"{at}?name=x", *plain))["tokens"] == kept["tokens"]
  curl(f"{at}/{kept['id']}/state", "-o", "book.state")
  binary = ["-H", "Content-Type: application/octet-stream", "--data-binary", "@book.state"]
  assert json.loads(curl(f"{at}/state", *binary))["tokens"] == kept["tokens"]
  form = json.loads(curl(f"{at}/state", "-F", "file=@book.state"))
  assert form["tokens"] == kept["tokens"]
  assert json.loads(curl("-X", "DELETE", f"{at}/{kept['id']}"))["deleted"]


def test_a_downloaded_state_is_one_that_session_loads(served, tmp_path):
  folder, server = served
  kept = read(server)
  (tmp_path / "a.state").write_bytes(
    httpx.get(f"{server.address}/v1/sessions/{kept['id']}/state").content
  )
  session = Session.load(tmp_path / "a.state", model=folder)
  plain = Session(open_run(folder))
  plain.read(TEXT)
  write = lambda session: [piece.token for piece in session.generate(8, temperature=0.0)]
  assert session.positions == [kept["tokens"]] and write(session) == write(plain)


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--workdir=none"], "none"),
    (["--lanes=0"], "--lanes=0: must be at least 1"),
    (["--port=99999"], "--port"),
    (["--port=-1"], "--port"),
    (["--host=no.such.host.invalid"], "--host"),
    (["--keys=none.txt"], "--keys=none.txt"),
    (["--keys="], "--keys is empty"),
    (["--seconds=0"], "--seconds"),
    (["--chat-template=file:none"], "file:none"),
    (["--step=9"], "9"),
  ],
)
def test_wrong_flags_are_refused_in_one_line(served, flags, said, capsys):
  folder, _ = served
  assert cli.main(["serve", f"--workdir={folder}", *flags]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1


def test_a_port_in_use_and_a_state_that_grows_are_refused(tmp_path, workdir, capsys):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    assert cli.main(["serve", f"--workdir={workdir}", f"--port={port}"]) == 2
  assert "--port" in capsys.readouterr().err
  full = write_run(tmp_path / "full", mixer="full", rule="linear")
  assert cli.main(["serve", f"--workdir={full}", "--port=0"]) == 2
  assert "grows with the text" in capsys.readouterr().err


def test_a_damaged_index_is_refused(workdir, capsys):
  (workdir / "sessions").mkdir()
  (workdir / "sessions" / INDEX).write_bytes(b"no data base" * 100)
  assert cli.main(["serve", f"--workdir={workdir}", "--port=0"]) == 2
  assert "damaged" in capsys.readouterr().err
  with pytest.raises(sqlite3.DatabaseError):
    sqlite3.connect(workdir / "sessions" / INDEX).execute("SELECT * FROM sessions")


def test_other_addresses_and_keys(workdir):
  """On all addresses any name of the host will do; each request needs a key."""
  with Process(workdir, "--host=0.0.0.0", INFINI_JAX_SERVE_KEYS=KEY) as server:
    at = server.address.replace("0.0.0.0", "127.0.0.1")
    headers = {"host": "a.name.of.this.machine"}
    assert httpx.get(f"{at}/health", headers=headers).status_code == 200
    assert httpx.get(f"{at}/v1/models", headers=headers).status_code == 401
    headers["authorization"] = f"Bearer {KEY}"
    assert httpx.get(f"{at}/v1/models", headers=headers).status_code == 200
    assert KEY not in server.said()
