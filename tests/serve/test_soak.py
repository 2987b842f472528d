"""Ten thousand requests of all kinds: the memory of the server stays flat, and nothing is left."""

import concurrent.futures
import random
import time

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from tests.serve.models import write_run  # noqa: E402
from tests.serve.servers import Process  # noqa: E402

REQUESTS, CLIENTS, EVERY = 10_000, 8, 1000
WARM, MOST = 2 * EVERY, 20.0  # requests before the memory counts; MB that it may then grow


class Client:
  """One client after another kind of request; it remembers its sessions."""

  def __init__(self, address: str, seed: int):
    self._draw = random.Random(seed)
    self._http = httpx.Client(base_url=address, timeout=120)
    self._own: list[str] = []

  def ask(self) -> None:
    """One request, or a few."""
    draw = self._draw
    text = "".join(draw.choice("abcdefg \n") for _ in range(draw.randrange(60)))
    body = {"prompt": text, "max_tokens": draw.randrange(1, 6), "seed": draw.randrange(100)}
    kind = draw.randrange(8)
    if kind == 0:
      self._own.append(self._http.post("/v1/sessions", json={"text": text}).json()["id"])
    elif kind == 1:
      self._http.post("/v1/completions", content=b"{wrong")
    elif kind == 2:
      how = {"stream": True, "max_tokens": 200}
      with self._http.stream("POST", "/v1/completions", json=body | how) as answer:
        next(answer.iter_lines())  # and then it goes away
    elif self._own and kind == 3:
      assert self._http.delete(f"/v1/sessions/{self._own.pop()}").is_success
    elif self._own and kind < 6:
      more = {"session": draw.choice(self._own), "fork": kind == 4}
      answer = self._http.post("/v1/completions", json=body | more)
      assert answer.is_success or answer.status_code in (400, 409), answer.text
    else:
      answer = self._http.post("/v1/completions", json=body | {"stream": kind == 6})
      assert answer.is_success, answer.text

  def work(self) -> None:
    """Its share of the requests."""
    for _ in range(EVERY // CLIENTS):
      self.ask()

  def close(self) -> None:
    """Removes what is left."""
    for id in self._own:
      assert self._http.delete(f"/v1/sessions/{id}").is_success
    self._http.close()


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_requests(tmp_path):
  flags = ("--lanes=4", "--in-memory=8", "--sessions=4000")
  with Process(write_run(tmp_path / "run"), *flags) as server:
    clients = [Client(server.address, seed) for seed in range(CLIENTS)]
    memory, started = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
      for _ in range(REQUESTS // EVERY):
        list(threads.map(Client.work, clients))
        memory.append(server.memory())
        print(f"{len(memory) * EVERY:,} requests: {memory[-1]:.1f} MB", flush=True)
    seconds = time.monotonic() - started
    print(f"{REQUESTS / seconds:.0f} requests a second")
    for client in clients:
      client.close()
    text = httpx.get(f"{server.address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    for name in ("requests_waiting", "requests_reading", "lanes_writing", "sessions"):
      assert float(values[f"infini_jax_{name}"]) == 0, name
    start, end = (
      values[f"infini_jax_{n}"] for n in ("programs_at_start", "compiled_programs_total")
    )
    assert start == end, "something was compiled after the start"
    grown = max(memory) - max(memory[: WARM // EVERY])
    assert grown < MOST, memory
    assert server.end() == 0
