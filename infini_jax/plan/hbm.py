"""What a compiled program moves to and from HBM, operation by operation, read from XLA's text.

A fusion reads its operands and writes its results; what happens inside it stays on the chip. Arrays
in the vector memory of a TPU are not counted, and the padding of tiles is. Of an operand that is
only sliced, the slices are counted. `plan.traffic` estimates a lower bound of the same bytes.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from infini_jax.plan.hlo import BRANCHES, BYTES, computations, loop_trips

SHAPE = re.compile(r"\b(pred|bf16|f8e\w+|[suf]\d+)\[([\d,]*)\](\{[^}]*\})?")
LAYOUT = re.compile(r"\{([\d,]*)(?::T\((\d+)(?:,(\d+))?\))?")
ON_CHIP = re.compile(r"S\([1-9]\)")
NAMED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
CALLS = re.compile(r"calls=%?([\w.\-]+)")
EITHER = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
# Names for arrays that are there already, and the second half of an asynchronous pair.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "domain", "async-update"}
SLICES = {"dynamic-slice", "slice", "gather"}


class Line(NamedTuple):
  """One operation in XLA's text."""

  name: str
  type: str
  op: str
  operands: tuple[str, ...]
  root: bool
  text: str


@dataclasses.dataclass(frozen=True)
class Moved:
  """An operation of the program that moves bytes, loop iterations included.

  Attributes:
    name: XLA's name of it.
    op: XLA's operation; of a kernel, its target.
    scope: the JAX names that it was made of, joined by '/'.
    times: how often it runs.
    read, written: bytes of HBM in total.
    seconds: XLA's estimate for the time of computing it, at the clock that was given; 0: none.
    multiplies: whether it holds a matrix product.
  """

  name: str
  op: str
  scope: str
  times: int
  read: float
  written: float
  seconds: float
  multiplies: bool

  @property
  def bytes(self) -> float:
    """Read and written."""
    return self.read + self.written


def moved(text: str, clock: float = 1.5e9) -> list[Moved]:
  """All operations of `compiled.as_text()` that move bytes of HBM; `clock` in Hz."""
  program = _Program(text)
  return list(program.walk(program.entry, 1, clock))


class Array(NamedTuple):
  """An array of a type in XLA's text."""

  bytes: float  # with the padding of its tiles
  in_hbm: bool


def arrays(type_: str) -> list[Array]:
  """The arrays of a type, such as 'bf16[8,128]{1,0:T(8,128)(2,1)S(1)}', or of a tuple of them."""
  found = []
  for dtype, dims, layout in SHAPE.findall(type_):
    size = _elements(dims, layout) * BYTES.get(dtype, 1 if dtype.startswith("f8") else 4)
    found.append(Array(size, not ON_CHIP.search(layout)))
  return found


def _elements(dims: str, layout: str) -> int:
  """Numbers as they lie in memory: the two minor dimensions are padded to the tile."""
  sizes = [int(n) for n in dims.split(",") if n]
  form = LAYOUT.match(layout or "")
  if not sizes or not form or not form[1] or not form[2]:
    return math.prod(sizes)
  minor_first = [sizes[int(i)] for i in form[1].split(",")]
  up = lambda size, tile: -(-size // tile) * tile
  rows, columns = (int(form[2]), int(form[3])) if form[3] else (1, int(form[2]))
  if len(minor_first) == 1:
    return up(minor_first[0], rows * columns)
  minor_first[0] = up(minor_first[0], columns)
  minor_first[1] = up(minor_first[1], rows)
  return math.prod(minor_first)


class _Program:
  """The computations of a program."""

  def __init__(self, text: str):
    self._raw, self.entry = computations(text)
    self.bodies = {name: [*map(_line, filter(NAMED.match, raw))] for name, raw in self._raw.items()}

  def walk(self, name: str, times: int, clock: float) -> Iterator[Moved]:
    """The operations of a computation, and of those that it runs."""
    types = {line.name: line.type for line in self.bodies[name]}
    for line in self.bodies[name]:
      if line.op == "while":
        body = re.search(r"body=%?([\w.\-]+)", line.text)
        if body:
          yield from self.walk(body[1], times * (loop_trips(line.text, self._raw) or 1), clock)
      elif line.op == "conditional":
        branches = BRANCHES.search(line.text)
        names = branches[1].split(",") if branches else EITHER.findall(line.text)
        for branch in names:
          yield from self.walk(branch.strip().lstrip("%"), times, clock)
      elif line.op == "call":
        if to := re.search(r"to_apply=%?([\w.\-]+)", line.text):
          yield from self.walk(to[1], times, clock)
      elif line.op not in FREE and not line.op.endswith("-done"):
        read, written = self._bytes(line, [types.get(name, "") for name in line.operands])
        cycles = re.search(r'estimated_cycles":"(\d+)"', line.text)
        target = re.search(r'custom_call_target="([^"]+)"', line.text)
        yield Moved(
          name=line.name,
          op=target[1] if target else line.op,
          scope=self._scope(line),
          times=times,
          read=read * times,
          written=written * times,
          seconds=int(cycles[1]) * times / clock if cycles else 0.0,
          multiplies=self._multiplies(line),
        )

  def _bytes(self, line: Line, types: list[str]) -> tuple[float, float]:
    """Bytes that one run of an operation reads and writes."""
    inputs = [_in_hbm(type_) for type_ in types]
    if line.op == "fusion":
      called = CALLS.search(line.text)
      if called:
        read = sum(
          min(size, self._read(called[1], i, size)) for i, size in enumerate(inputs) if size
        )
        return read, self._written(called[1], line.type)
    if line.op == "dynamic-update-slice":
      return inputs[1], inputs[1] if arrays(line.type)[0].in_hbm else 0.0
    if line.op in SLICES:
      whole = sum(array.bytes for array in arrays(line.type))
      return whole if inputs[0] else 0.0, _in_hbm(line.type)
    if line.op in ("copy-start", "slice-start"):  # (destination, source, context)
      to, of = (arrays(line.type) * 2)[:2]
      return to.bytes if of.in_hbm else 0.0, to.bytes if to.in_hbm else 0.0
    read = sum(inputs)
    written = _in_hbm(line.type)
    return read, max(0.0, written - read) if line.op.endswith("-start") else written

  def _read(self, name: str, number: int, whole: float) -> float:
    """Bytes that a fusion reads of one operand: all of it, or only slices."""
    body = self.bodies.get(name, [])
    users = defaultdict(list)
    waiting = []
    for line in body:
      if line.op == "parameter" and f"parameter({number})" in line.text:
        waiting.append(line.name)
      for which, operand in enumerate(line.operands):
        users[operand].append((line, which))
    if not waiting:
      return whole
    total, seen = 0.0, set(waiting)
    while waiting:
      for line, which in users[waiting.pop()]:
        if line.op in ("bitcast", "get-tuple-element"):
          if line.name not in seen:
            seen.add(line.name)
            waiting.append(line.name)
        elif line.op in SLICES:
          total += sum(array.bytes for array in arrays(line.type)) if which == 0 else 0.0
        elif line.op == "fusion" and (called := CALLS.search(line.text)):
          total += self._read(called[1], which, whole)
        elif line.op not in ("tuple", "dynamic-update-slice") or (which and line.op != "tuple"):
          total += whole
    return min(total, whole)

  def _written(self, name: str, type_: str) -> float:
    """Bytes that a fusion writes: of an array that is updated in place, only the update."""
    lines = {line.name: line for line in self.bodies.get(name, [])}
    root = next((line for line in lines.values() if line.root), None)
    results = arrays(type_)
    if root is None:
      return sum(array.bytes for array in results if array.in_hbm)
    made = [*self._results(root, lines)]
    total = 0.0
    for i, array in enumerate(results):
      if not array.in_hbm:
        continue
      size = array.bytes
      line = made[i] if i < len(made) else None
      while line and line.op in ("bitcast", "get-tuple-element") and line.operands[0] in lines:
        line = lines[line.operands[0]]
      if line is not None and line.op == "parameter":
        size = 0.0  # handed on
      elif line is not None and line.op == "dynamic-update-slice":
        update = lines.get(line.operands[1])
        size = min(size, sum(a.bytes for a in arrays(update.type)) if update else size)
      total += size
    return total

  def _results(self, line: Line, lines: Mapping[str, Line]) -> Iterator[Line]:
    """The operation that makes each array of a result."""
    if line.op == "tuple":
      for operand in line.operands:
        yield from self._results(lines[operand], lines)
    else:
      yield from [line] * max(1, len(arrays(line.type)))

  def _inside(self, line: Line) -> Iterator[Line]:
    """The operations of a fusion, and of fusions in it."""
    called = CALLS.search(line.text)
    for inner in self.bodies.get(called[1], []) if called else []:
      yield inner
      if inner.op == "fusion":
        yield from self._inside(inner)

  def _scope(self, line: Line) -> str:
    """Its own name in JAX, or the most frequent one inside it."""
    name = re.search(r'op_name="([^"]*)"', line.text)
    if name and not name[1].endswith("/while"):
      return name[1]
    inner = Counter(
      found[1] for one in self._inside(line) if (found := re.search(r'op_name="([^"]*)"', one.text))
    )
    return inner.most_common(1)[0][0] if inner else ""

  def _multiplies(self, line: Line) -> bool:
    kinds = ("dot", "convolution")
    return line.op in kinds or any(one.op in kinds for one in self._inside(line))


def _in_hbm(type_: str) -> float:
  return sum(array.bytes for array in arrays(type_) if array.in_hbm)


def _line(text: str) -> Line:
  """An operation, from a line that `NAMED` matches."""
  root, name, rest = NAMED.match(text).groups()  # type: ignore[union-attr]
  type_, op, operands = _parts(rest)
  return Line(name, type_, op, operands, bool(root), text)


def _parts(text: str) -> tuple[str, str, tuple[str, ...]]:
  """The type, the operation and the names of the operands of what is right of the equals sign."""
  type_, rest = _balanced(text) if text.startswith("(") else text.split(" ", 1)
  found = re.match(r"\s*([\w\-]+)(\(.*)$", rest)
  if not found:
    return type_, "", ()
  operands, _ = _balanced(found[2])
  return type_, found[1], tuple(re.findall(r"%([\w.\-]+)", re.sub(r"/\*.*?\*/", "", operands)))


def _balanced(text: str) -> tuple[str, str]:
  """The brackets that the text begins with, with their content, and the rest."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return text[: i + 1], text[i + 1 :]
  return text, ""
