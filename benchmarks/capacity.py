"""How many pairs one memory holds, by head size, rule, write gate, and text read after the pairs.

    python benchmarks/capacity.py [--head-sizes=32,64,128,256] [--tokens=0,64,256,1024,8192]

No model is trained. First, pairs of a random key and a random value are written. Then text of
random keys and values is read, and every key is asked for once. A value is right if the read-out is
nearer to it than to the value of any other pair. The table shows the largest power of 2 of pairs
for which nine in ten values are right. `written` is the fraction of each token of the text that is
written (config.infini.write_gate). A trained model has several memories, and its keys are separate.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from rich.table import Table

from infini_jax.ops import memory as mem
from infini_jax.progress import make_console, track

SEGMENT, MEMORIES = 64, 8  # tokens between two updates; memories that are tested in parallel
MOST = 1024  # the largest number of pairs
SHARP = 8.0  # standard deviation of a key's components; sigma maps those below 0 to almost 0


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = lambda kind: lambda text: [kind(part) for part in text.split(",")]
  parser.add_argument("--head-sizes", type=numbers(int), default=[32, 64, 128, 256])
  parser.add_argument("--tokens", type=numbers(int), default=[0, 64, 256, 1024, 8192])
  parser.add_argument("--written", type=numbers(float), default=[1.0, 0.1, 0.01])
  args = parser.parse_args()
  console = make_console()
  table = Table(title="pairs of which 0.9 are recalled, by tokens of text read since")
  for name in ("rule", "written", "head size", *(f"{n:,}" for n in args.tokens)):
    table.add_column(name, justify="right")
  rows = [
    (rule, written, size)
    for rule in ("linear", "delta")
    for written in args.written
    for size in args.head_sizes
  ]
  with track(console, "memories", len(rows)) as advance:
    for i, row in enumerate(rows):
      rule, written, size = row
      found = [str(n) if n else "0" for n in most(*row, args.tokens)]
      table.add_row(rule, f"{written:g}", str(size), *found)
      advance(i + 1, "")
  console.print(table)


def most(rule: str, written: float, size: int, tokens: list[int]) -> list[int]:
  """The most pairs that are recalled after each number of tokens; 0: not even two are."""
  found, pairs, alive = [0] * len(tokens), 2, [True] * len(tokens)
  while pairs <= MOST and any(alive):
    shares = recalled(rule, written, size, pairs, tokens)
    alive = [a and share >= 0.9 for a, share in zip(alive, shares, strict=True)]
    found = [pairs if a else n for a, n in zip(alive, found, strict=True)]
    pairs *= 2
  return found


def recalled(rule: str, written: float, size: int, pairs: int, tokens: list[int]) -> list[float]:
  """The fraction of values that are right after each number of tokens."""
  keys = jax.random.split(jax.random.key(pairs), 2)
  k_BNE = SHARP * jax.random.normal(keys[0], (MEMORIES, pairs, size))
  v_BNU = jax.random.rademacher(keys[1], (MEMORIES, pairs, size), jnp.float32)
  memory = mem.MemoryState(jnp.zeros((MEMORIES, 1, size, size)), jnp.zeros((MEMORIES, 1, size)))
  for start in range(0, pairs, SEGMENT):
    part = slice(start, start + SEGMENT)
    memory = write(rule, k_BNE[:, part, None], v_BNU[:, part, None], memory, 1.0)
  shares, read = [], 0
  for n in tokens:
    memory = text(rule, size, written, memory, read // SEGMENT, n // SEGMENT)
    read = n
    out_BNU = mem.read(k_BNE[:, :, None], memory)[:, :, 0]
    near_BNN = jnp.einsum("bnu,bmu->bnm", out_BNU, v_BNU)
    shares.append(float((near_BNN.argmax(-1) == jnp.arange(pairs)).mean()))
  return shares


@functools.partial(jax.jit, static_argnums=0)
def write(rule, k, v, memory, share):
  """The memory after one segment, in which each token is written with the weight `share`."""
  share_BNK = jnp.full(k.shape[:3], share)
  how = mem.Rule(rule)
  return mem.commit(memory, mem.summarize(k, v, memory, None, how, share_BNK), how)


@functools.partial(jax.jit, static_argnums=(0, 1))
def text(rule, size, written, memory, first, last):
  """The memory after segments `first` to `last` of random text."""

  def segment(i, memory):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), i), 2)
    shape = (MEMORIES, SEGMENT, 1, size)
    return write(
      rule,
      SHARP * jax.random.normal(keys[0], shape),
      jax.random.normal(keys[1], shape),
      memory,
      written,
    )

  return jax.lax.fori_loop(first, last, segment, memory)


if __name__ == "__main__":
  main()
