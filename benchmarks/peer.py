"""Training speed and memory on a CPU compared with PyTorch, each in its own process, in turns.

    python benchmarks/peer.py --torch=PYTHON [--jla=PYTHON] [--rounds=5]
        [--only=linear,delta,sdpa] [--json=FILE]

PYTHON is an interpreter that has torch, and infini-transformer-pytorch for the rules. A step is the
loss and the gradient of a model of the same shape in float32, without an optimizer. Steps are
interleaved, so that other work of the machine affects all alike. Compare rows of one run. `sdpa` is
a plain PyTorch decoder with full attention over the same text. `gla` (with --jla, an interpreter
that has jax-linear-attention) has gated linear attention in place of the memory.
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
    self.peak = 0.0
    env = {**os.environ, "OMP_NUM_THREADS": str(shape["threads"]), "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    self._process = subprocess.Popen(
      [*command, json.dumps(shape)], stdin=pipe, stdout=pipe, text=True, env=env
    )
    self.parameters = int(self._answer())

  def step(self, measured: bool) -> None:
    """Takes a step."""
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    seconds, self.peak = map(float, self._answer().split())
    self.seconds += [seconds] * measured

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"peer.py: {' '.join(self._process.args[:3])} ended; see its error above")
    return line


def own(rule: str, form: str, shape: dict) -> None:
  """The steps of this package, in its own process."""
  from infini_jax import cpu

  cpu.set_flags(os.environ, "float32")
  import jax
  import jax.numpy as jnp
  import numpy as np

  from infini_jax.config import resolve
  from infini_jax.models import bind, init
  from infini_jax.ops.loss import weighted_loss

  implementation, remat = form.split()
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
  })  # fmt: skip
  rng = np.random.default_rng(0)
  text = rng.integers(0, shape["vocab"], (shape["lanes"], shape["tokens"] + 1), np.int32)
  params = jax.jit(lambda key: init(config.model, key))(jax.random.key(0))

  def loss(params, text):
    model = bind(config.model, params)
    hidden, _ = model(text[:, :-1], model.state(shape["lanes"]))
    weight = jnp.full(hidden.shape[:2], 1 / shape["tokens"], jnp.float32)
    return weighted_loss(hidden, model.head(), text[:, 1:], weight, chunk=1024)[0]

  step = jax.jit(jax.value_and_grad(loss))
  text = jnp.asarray(text)
  print(sum(x.size for x in jax.tree.leaves(params)), flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    jax.block_until_ready(step(params, text))
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


def main() -> None:
  """Measures all, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--torch", default=sys.executable, help="an interpreter that has torch")
  parser.add_argument("--jla", help="an interpreter that has jax-linear-attention")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--tokens", type=int, default=SHAPE["tokens"])
  parser.add_argument("--only", default="linear,delta,sdpa", help="default %(default)s")
  add_json(parser)
  args = parser.parse_args()
  shape = {**SHAPE, "tokens": args.tokens, "threads": args.threads}
  results = Results(
    f"{args.threads} threads, {args.tokens:,} tokens in segments of {shape['segment']}, float32",
    {
      "rule": "",
      "program": "",
      "parameters": ",",
      "ms a step": ",.0f",
      "spread": ".0%",
      "tokens/s": ",.0f",
      "to the peer": ".2f",
      "peak GiB": ".2f",
    },
  )
  from infini_jax.progress import make_console, track

  console = make_console()
  for rule in args.only.split(","):
    commands = {"PyTorch": [args.torch, str(HERE / "peer_torch.py"), rule]}
    if rule != "sdpa":
      commands |= {f: [sys.executable, __file__, "--own", rule, f] for f in FORMS}
    if rule == "linear" and args.jla:
      commands["gla"] = [args.jla, str(HERE / "peer_jla.py")]
    children = {name: Child(command, shape) for name, command in commands.items()}
    turns = [child for _ in range(args.rounds + 1) for child in children.values()]
    with track(console, rule, len(turns)) as advance:
      for done, child in enumerate(turns):
        child.step(measured=done >= len(children))  # the first step compiles
        advance(done + 1)
    peer = statistics.median(children["PyTorch"].seconds)
    for name, child in children.items():
      child.close()
      taken = statistics.median(child.seconds)
      values = 1e3 * taken, spread(child.seconds), args.tokens / taken, peer / taken
      results.add(rule, name, child.parameters, *values, child.peak / 2**30)
  results.show(console)
  results.write(args.json)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--own"]:
    own(*sys.argv[2:4], json.loads(sys.argv[4]))
  else:
    main()
