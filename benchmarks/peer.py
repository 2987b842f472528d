"""Training and decoding on a CPU compared with PyTorch, each in its own process, in turns.

    python benchmarks/peer.py --torch=PYTHON [--jla=PYTHON] [--rounds=5] [--threads=2]
        [--only=linear,delta,sdpa] [--json=FILE]
    python benchmarks/peer.py --torch=PYTHON --decode [--rounds=100] [--threads=1]
        [--only=linear,delta]
    python benchmarks/peer.py --alone [...]      this package alone

PYTHON is an interpreter that has torch, and infini-transformer-pytorch for the rules. A step is the
loss and the gradient of a model of the same shape in float32, without an optimizer. Steps are
interleaved, so that other work of the machine affects all alike. Compare rows of one run. `sdpa` is
a plain PyTorch decoder with full attention over the same text. `gla` (with --jla, an interpreter
that has jax-linear-attention) has gated linear attention in place of the memory.

With --decode a step is one token of a text, the likeliest, in a stream that has read one segment
and a half. So each reads the memory and the keys of its open segment, and no segment is closed.
Each process has as many CPUs as threads. On a busy machine, CPU time is more reliable than the
clock.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import Results, add_json, spread

HERE = Path(__file__).parent
SHAPE = {"vocab": 256, "width": 512, "layers": 4, "heads": 8, "head_dim": 64, "ffn": 1365}
SHAPE |= {"segment": 512, "tokens": 4096, "lanes": 1}
FORMS = ("scan none", "scan full", "parallel none", "parallel full")


class Child:
  """A process that takes a step for each line that it gets."""

  def __init__(self, command: list[str], shape: dict):
    self.seconds: list[float] = []
    self.cpu: list[float] = []  # seconds of its threads
    self.peak = 0.0
    env = {**os.environ, "OMP_NUM_THREADS": str(shape["threads"]), "JAX_PLATFORMS": "cpu"}
    pipe, cpus = subprocess.PIPE, sorted(os.sched_getaffinity(0))[-shape["threads"] :]
    self._process = subprocess.Popen(
      [*command, json.dumps(shape)], stdin=pipe, stdout=pipe, text=True, env=env,
      preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )  # fmt: skip
    parameters, _, self.versions = self._answer().strip().partition(" ")
    self.parameters = int(parameters)

  def step(self, measured: bool) -> None:
    """Takes a step."""
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    seconds, cpu, self.peak = map(float, self._answer().split())
    if measured:
      self.seconds.append(seconds)
      self.cpu.append(cpu)

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"peer.py: {' '.join(self._process.args[:3])} ended; see its error above")
    return line


def own(rule: str, form: str, shape: dict) -> None:
  """The steps of this package, in its own process; the form 'decode': tokens."""
  from infini_jax import cpu

  cpu.set_flags(os.environ, "float32")
  import jax
  import jax.numpy as jnp
  import numpy as np

  from infini_jax.config import resolve
  from infini_jax.inference.engine import Engine
  from infini_jax.models import bind, init
  from infini_jax.ops.loss import weighted_loss

  implementation, remat = ("auto", "none") if form == "decode" else form.split()
  sizes = {name: shape[name] for name in ("width", "layers", "heads", "head_dim", "ffn")}
  config = resolve({
    "model": {
      **sizes,
      "kv_heads": shape["heads"],
      "vocab_size": shape["vocab"],
      "segment_length": shape["segment"],
      "activation": "geglu",
      "tied_embeddings": False,
    },
    "infini": {"rule": rule},
    "run": {"implementation": implementation, "remat": remat},
    "evaluation": {"segments": 1},
  })  # fmt: skip
  rng = np.random.default_rng(0)
  text = rng.integers(0, shape["vocab"], (shape["lanes"], shape["tokens"] + 1), np.int32)
  params = jax.jit(lambda key: init(config.model, key))(jax.random.key(0))

  def loss(params, text):
    model = bind(config.model, params)
    hidden, _ = model(text[:, :-1], model.state(shape["lanes"]))
    weight = jnp.full(hidden.shape[:2], 1 / shape["tokens"], jnp.float32)
    return weighted_loss(hidden, model.head(), text[:, 1:], weight, chunk=1024)[0]

  def tokens():
    engine, N = Engine(config, params), shape["segment"]
    stream = engine.read(engine.start(1), text[:, :N])
    logits_BV, stream = engine.extend(stream, [text[0, N : N + N // 2]])
    while True:
      token = int(np.argmax(logits_BV))
      yield token
      logits_BV, stream = engine.extend(stream, [[token]])

  if form == "decode":
    writer = tokens()
    step = lambda: next(writer)
  else:
    train, batch = jax.jit(jax.value_and_grad(loss)), jnp.asarray(text)
    step = lambda: jax.block_until_ready(train(params, batch))
  print(sum(x.size for x in jax.tree.leaves(params)), f"jax {jax.__version__}", flush=True)
  for _ in sys.stdin:
    began, used = time.perf_counter(), time.process_time()
    step()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    print(seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


def main() -> None:
  """Measures all, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--torch", default=sys.executable, help="an interpreter that has torch")
  parser.add_argument("--jla", help="an interpreter that has jax-linear-attention")
  parser.add_argument("--alone", action="store_true", help="without PyTorch")
  parser.add_argument("--decode", action="store_true", help="token by token, instead of training")
  parser.add_argument("--rounds", type=int, help="default: 5; 100 tokens with --decode")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--tokens", type=int, default=SHAPE["tokens"])
  parser.add_argument("--only", help="default: linear,delta,sdpa; with --decode linear,delta")
  add_json(parser)
  args = parser.parse_args()
  rules = (args.only or "linear,delta,sdpa").split(",")
  if not args.only and (args.decode or args.alone):
    rules.remove("sdpa")
  if "sdpa" in rules and (args.decode or args.alone):
    parser.error("--only=sdpa: it is PyTorch's, and has no form that decodes; leave it out")
  rounds = args.rounds or (100 if args.decode else 5)
  if args.decode and rounds > SHAPE["segment"] // 2 - 4:
    parser.error(f"--rounds={rounds}: a segment would be closed; give at most 252")
  shape = {**SHAPE, "tokens": args.tokens, "threads": args.threads, "decode": args.decode}
  what, form, tokens = ("token", ",.2f", 1) if args.decode else ("step", ",.0f", args.tokens)
  results = Results(
    f"{args.threads} threads, segments of {shape['segment']}, float32: "
    + (f"{rounds} tokens each" if args.decode else f"steps of {args.tokens:,} tokens"),
    {
      "rule": "",
      "program": "",
      "parameters": ",",
      f"ms a {what}": form,
      "spread": ".0%",
      "tokens/s": ",.0f",
      "to the peer": ".2f",
      "CPU ms": form,
      "CPU to the peer": ".2f",
      "peak GiB": ".2f",
    },
  )
  from infini_jax.progress import make_console, track

  console = make_console()
  forms, warm = (("decode",), 3) if args.decode else (FORMS, 1)
  for rule in rules:
    commands = {} if args.alone else {"PyTorch": [args.torch, str(HERE / "peer_torch.py"), rule]}
    if rule != "sdpa":
      commands |= {f: [sys.executable, __file__, "--own", rule, f] for f in forms}
    if rule == "linear" and args.jla and not args.decode:
      commands["gla"] = [args.jla, str(HERE / "peer_jla.py")]
    children = {name: Child(command, shape) for name, command in commands.items()}
    turns = [child for _ in range(rounds + warm) for child in children.values()]
    with track(console, rule, len(turns)) as advance:
      for done, child in enumerate(turns):
        child.step(measured=done >= warm * len(children))  # the first steps compile
        advance(done + 1)
    median = lambda one: (statistics.median(one.seconds), statistics.median(one.cpu))
    peer, peer_cpu = (None, None) if args.alone else median(children["PyTorch"])
    for name, child in children.items():
      child.close()
      taken, cpu = median(child)
      wall = 1e3 * taken, spread(child.seconds), tokens / taken, peer and peer / taken
      values = *wall, 1e3 * cpu, peer_cpu and peer_cpu / cpu, child.peak / 2**30
      results.add(rule, name, child.parameters, *values)
    results.more["programs"] = {name: child.versions for name, child in children.items()}
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--own"]:
    own(*sys.argv[2:4], json.loads(sys.argv[4]))
  else:
    main()
