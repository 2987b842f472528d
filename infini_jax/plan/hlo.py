"""Reads XLA's text of a compiled program: its computations, its loops, and its collectives."""

import dataclasses
import math
import re
from collections import Counter

from infini_jax.plan.traffic import sent

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
KINDS = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute"
HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
# `name = type kind(operands), attributes`; the second half of an asynchronous pair is not counted.
COLLECTIVE = re.compile(rf"^ *(?:ROOT )?%?[\w.\-]+ = (.*?) ({KINDS})(-start)?\(")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CHAIN = re.compile(r'chain_id="(\d+)"')
SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Sent:
  """All collectives of a program with the same kind, type and number of devices.

  Attributes:
    kind: its name; `permute` and `exchange` for XLA's collective-permute and all-to-all.
    dtype: the number type of most of the bytes.
    devices: the devices that take part.
    times: how often it runs, loop iterations included.
    bytes: the bytes that one device sends in total.
  """

  kind: str
  dtype: str
  devices: int
  times: int
  bytes: float


@dataclasses.dataclass(frozen=True)
class Communication:
  """All that a program sends, largest first, and the loops of unknown length (counted once)."""

  parts: tuple[Sent, ...]
  unknown_loops: int

  @property
  def bytes(self) -> float:
    """Bytes that one device sends."""
    return sum(part.bytes for part in self.parts)


def communication(text: str, devices: int) -> Communication:
  """Reads `compiled.as_text()` of a program for `devices` devices."""
  bodies, entry = computations(text)
  runs, unknown = _runs(bodies, entry)
  times: Counter = Counter()
  chains: list[tuple[str, list[str]]] = []
  total: dict[tuple[str, str, int], float] = {}
  for name, count in runs.items():
    for line in bodies[name]:
      if count and (found := COLLECTIVE.match(line)):
        # On a TPU the start, the end and the operations between them form a chain; count it once.
        if chain := CHAIN.search(line):
          link = (chain[1], re.findall(r"channel_id=(\d+)", line)[:1])
          if link in chains:
            continue
          chains.append(link)
        kind = found[2].replace("collective-", "").replace("all-to-all", "exchange")
        dtype, size = _result(found[1], found[2], started=bool(found[3]))
        group = devices if kind == "permute" else _group(line, devices)
        whole = size * group if kind == "reduce-scatter" else size
        if group > 1:
          key = (kind, dtype, group)
          times[key] += count
          total[key] = total.get(key, 0.0) + count * sent(kind, whole, group)
  parts = [Sent(*key, times[key], size) for key, size in total.items()]
  return Communication(tuple(sorted(parts, key=lambda p: -p.bytes)), unknown)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of every computation, and the name of the entry computation."""
  bodies: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    if line and not line[0].isspace() and (header := HEADER.match(line)):
      lines = bodies[header[1]] = []
      entry = header[1] if line.startswith("ENTRY") else entry
    else:
      lines.append(line)
  return bodies, entry


def _runs(bodies: dict[str, list[str]], entry: str) -> tuple[Counter, int]:
  """How often each computation runs. In the text, a caller is below the computations it calls."""
  runs: Counter = Counter({entry: 1})
  unknown = 0
  for name in reversed(bodies):
    for line in bodies[name] if runs[name] else ():
      called = CALLED.findall(line)
      if branches := BRANCHES.search(line):
        called += [b.strip().lstrip("%") for b in branches[1].split(",")]
      trips: int | None = 1
      if " while(" in line:
        trips = loop_trips(line, bodies)
        unknown += trips is None
      for other in called:
        runs[other] += runs[name] * (1 if trips is None else trips)
  return runs, unknown


def loop_trips(line: str, bodies: dict[str, list[str]]) -> int | None:
  """The iterations of a loop that counts from 0: stated by XLA, or found in its condition."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", line)
  lines = bodies.get(condition[1], []) if condition else []
  root = next((x for x in lines if "ROOT" in x and "direction=LT" in x), "")
  for name in re.findall(r"%([\w.\-]+)[,)]", root.partition("compare(")[2]):
    for x in lines:
      if found := re.match(rf" *%?{re.escape(name)} = s32\[\]\S* constant\((\d+)\)", x):
        return int(found[1])
  return None


def _result(types: str, kind: str, *, started: bool) -> tuple[str, float]:
  """The type and the bytes of the result of a collective."""
  sizes = [
    (dtype, BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n))
    for dtype, dims in SHAPE.findall(types)
  ]
  if started and kind != "all-reduce" and len(sizes) > 1:  # operands come first, then results
    sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
  return max(sizes, key=lambda s: s[1])[0], sum(size for _, size in sizes)


def _group(line: str, devices: int) -> int:
  """The number of devices that take part, from any notation of XLA."""
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
    return int(found[2])
  if found := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
    return len(found[1].split(","))
  return devices
