"""How fast `infini-jax serve` is: tokens/s by concurrent sessions, and the wait while one reads.

    python benchmarks/serve.py [--workdir=RUN] [--lanes=8] [--sessions=1,2,4,8,16,32] [--tokens=200]
        [--json=FILE]

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
from record import Results, add_json

from infini_jax.config import resolve
from infini_jax.data import load_tokenizer
from infini_jax.models import init
from infini_jax.progress import make_console
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
  add_json(parser)
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
        results = by_sessions(client, args)
        results.more["beside"] = beside_a_reader(client, args).rows
        results.write(args.json)
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


def by_sessions(client, args) -> Results:
  complete(client, 3)
  results = Results(
    f"{args.lanes} lanes, {args.tokens} tokens each",
    {"sessions": "d", "tokens/s": ".1f", "ms a token of a session": ".1f", "first token ms": ".0f"},
  )
  for count in map(int, args.sessions.split(",")):
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
      done = [*threads.map(lambda seed: complete(client, args.tokens, seed), range(count))]
    seconds = time.perf_counter() - started
    gaps = [b - a for times in done for a, b in zip(times, times[1:], strict=False)]
    first = statistics.median(times[0] for times in done)
    values = sum(map(len, done)) / seconds, 1000 * statistics.median(gaps), 1000 * first
    results.add(count, *values)
  results.show(make_console())
  return results


def beside_a_reader(client, args) -> Results:
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
  columns = ("first token ms", "at worst", "next tokens ms", "next at worst")
  results = Results(
    f"the book: {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s, with {len(busy)} requests",
    {"other work": ""} | dict.fromkeys(columns, ".0f"),
  )
  for name, done in (("none", calm), ("a session that reads a book", busy)):
    first = [1000 * times[0] for times in done]
    gaps = [1000 * (b - a) for times in done for a, b in zip(times, times[1:], strict=False)]
    results.add(name, statistics.median(first), max(first), statistics.median(gaps), max(gaps))
  results.show(make_console())
  return results


def _read(client, text):
  started = time.perf_counter()
  answer = client.post("/v1/sessions", json={"text": text})
  return json.loads(answer.text)["tokens"], time.perf_counter() - started


if __name__ == "__main__":
  main()
