"""How fast `infini-jax serve` is: tokens/s by concurrent sessions, and the wait while one reads.

    python benchmarks/serve.py [--workdir=RUN] [--lanes=8] [--sessions=1,2,4,8,16,32] [--tokens=200]

It starts a server, asks it by HTTP, and prints tables. Without a run, it makes a random model:
4 layers of width 128, segments of 64 tokens, bytes. A text that ends early counts as it is.
"""

import argparse
import concurrent.futures
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import jax
import jax.numpy as jnp

from infini_jax.config import resolve
from infini_jax.data import load_tokenizer
from infini_jax.models import init
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.step import TrainState

SIZES = {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "head_dim": 32, "ffn": 512}
SIZES |= {"segment_length": 64, "vocab_size": 264}

PROMPT = "This is the beginning of a text that the model continues. "
BOOK = "The road went on through the wood, and nobody knew how far. It was late already.\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", help="default: a small model of random weights")
  parser.add_argument("--lanes", type=int, default=8)
  parser.add_argument("--sessions", default="1,2,4,8,16,32")
  parser.add_argument("--tokens", type=int, default=200)
  parser.add_argument("--book", type=int, default=200_000, help="characters")
  args = parser.parse_args()
  folder = tempfile.mkdtemp(prefix="infini_jax_serve_")
  workdir = args.workdir or make(Path(folder) / "run")
  command = [sys.executable, "-m", "infini_jax.cli", "serve", f"--workdir={workdir}", "--port=0"]
  command += [f"--lanes={args.lanes}", f"--sessions-dir={folder}/sessions"]
  started = time.perf_counter()
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
      while (found := re.search(r"http://\S+", server.stdout.readline())) is None:
        assert server.poll() is None
      print(f"ready after {time.perf_counter() - started:.0f} s")
      with httpx.Client(base_url=found[0], timeout=None) as client:
        by_sessions(client, args)
        beside_a_reader(client, args)
    finally:
      server.terminate()
  shutil.rmtree(folder)


def make(folder):
  """A run of random weights."""
  config = resolve({"model": SIZES, "infini": {"rule": "delta"}, "data": {"path": "none"}})
  workdir, tokenizer = Workdir(folder), load_tokenizer("bytes")
  workdir.claim(config, "text", tokenizer.fingerprint)
  tokenizer.save(workdir.tokenizer)
  params = init(config.model, jax.random.key(0))
  with Checkpoints(workdir) as saved:
    saved.save(0, TrainState(jnp.zeros((), jnp.int32), params, None, None, None))
  return folder


def complete(client, tokens, seed=0):
  """The seconds to the first token and to the last, and the number of tokens."""
  body = {"prompt": PROMPT, "max_tokens": tokens, "seed": seed, "stream": True, "logprobs": 0}
  started, times = time.perf_counter(), []
  with client.stream("POST", "/v1/completions", json=body) as answer:
    for line in answer.iter_lines():
      if '"token_logprobs": [' in line:
        times.append(time.perf_counter() - started)
  return times


def by_sessions(client, args) -> None:
  complete(client, 3)
  print(
    "\n| sessions | tokens/s | ms per token of a session | first token, ms |\n|---|---|---|---|"
  )
  for count in map(int, args.sessions.split(",")):
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
      done = [*threads.map(lambda seed: complete(client, args.tokens, seed), range(count))]
    seconds = time.perf_counter() - started
    gaps = [b - a for times in done for a, b in zip(times, times[1:], strict=False)]
    print(
      f"| {count} | {sum(map(len, done)) / seconds:.1f} | {1000 * statistics.median(gaps):.1f} "
      f"| {1000 * statistics.median(times[0] for times in done):.0f} |",
      flush=True,
    )


def beside_a_reader(client, args) -> None:
  """The first token of short requests while another session reads a book, and without it."""
  ask = lambda: [complete(client, 10, seed) for seed in range(7)]
  calm, text = ask(), (BOOK * (args.book // len(BOOK) + 1))[: args.book]
  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    read = threads.submit(_read, client, text)
    time.sleep(1)
    busy = []
    while not read.done() and len(busy) < 21:
      busy += [complete(client, 10, len(busy))]
    tokens, seconds = read.result()
  print("\n| other work | first token, ms: median | worst | next tokens, ms: median | worst |")
  print("|---|---|---|---|---|")
  for name, done in (("none", calm), ("a session that reads a book", busy)):
    first = [1000 * times[0] for times in done]
    gaps = [1000 * (b - a) for times in done for a, b in zip(times, times[1:], strict=False)]
    print(
      f"| {name} | {statistics.median(first):.0f} | {max(first):.0f} "
      f"| {statistics.median(gaps):.0f} | {max(gaps):.0f} |"
    )
  print(
    f"\nthe book: {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s, with {len(busy)} requests"
  )


def _read(client, text):
  started = time.perf_counter()
  answer = client.post("/v1/sessions", json={"text": text})
  return json.loads(answer.text)["tokens"], time.perf_counter() - started


if __name__ == "__main__":
  main()
