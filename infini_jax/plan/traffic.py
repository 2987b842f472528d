"""Estimates the bytes that a chip sends to others and moves to and from its HBM in a step."""

import dataclasses
import math

from infini_jax.config import Config
from infini_jax.ops.shards import GATHERED
from infini_jax.parallel.chips import Chip
from infini_jax.parallel.mesh import AXES, COMPUTE, STORAGE, axes_of
from infini_jax.plan.per_chip import PerChip


@dataclasses.dataclass(frozen=True)
class Collective:
  """The bytes that one chip sends in a step for one purpose.

  Attributes:
    what: what is sent.
    kind: all-gather, reduce-scatter, all-reduce, exchange (XLA's all-to-all) or permute.
    axes: the axes of the mesh, joined by '*'.
    devices: the number of devices that take part.
    times: how often it runs in a step.
    bytes: bytes that one chip sends in a step, in total.
    network: whether it goes over the data-center network, not the links of an island.
  """

  what: str
  kind: str
  axes: str
  devices: int
  times: int
  bytes: float
  network: bool


def sent(kind: str, whole: float, devices: int) -> float:
  """Bytes that one chip sends in one collective on a ring, the minimum of all algorithms.

  Args:
    kind: the kind of the collective.
    whole: bytes of the undivided array that is gathered, reduced or scattered.
    devices: the number of devices that take part.
  """
  if devices == 1:
    return 0.0
  if kind == "permute":
    return whole
  return whole * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def collectives(config: Config, s: PerChip, sizes: dict[str, int], chip: Chip) -> list[Collective]:
  """The large collectives: weights, their gradients, activations over `tensor`, memories."""
  m, t = config.model, config.train
  D, L, c, batches = m.width, m.layers, s.compute, t.accumulate
  found = []

  def add(what, kind, axes, times, whole):
    devices = math.prod(sizes[axis] for axis in axes)
    one = sent(kind, whole, devices)
    if one and times:
      axes = tuple(axis for axis in axes if sizes[axis] > 1)
      network = leaves_island(axes, sizes, chip)
      found.append(Collective(what, kind, "*".join(axes), devices, times, one * times, network))

  gated = 3 if m.gated_ffn else 2
  layer = D * m.head_dim * 2 * (s.heads + s.kv_heads) + D * s.ffn * gated
  head, hidden = s.head_rows * D, s.tokens * D * c
  storage = axes_of(STORAGE, "D")
  tokened = (*axes_of(COMPUTE, "B"), *axes_of(COMPUTE, "T"))
  copies = tuple(axis for axis in AXES if axis in tokened and axis not in storage)
  again = m.run.remat != "none"
  add("weights of a layer", "all-gather", storage, batches * L * (2 if again else 1), layer * c)
  add("gradients of a layer", "reduce-scatter", storage, batches * L, layer * c)
  add("embeddings of tokens, back too", "exchange", storage, batches * 2, hidden)
  divided = s.head_rows < s.vocab  # then hidden states are sent to the rows of the head
  add("head", "all-gather", storage, batches, head * (4 if divided else c))
  add("gradient of the head", "reduce-scatter", storage, batches, head * 4)
  seq = axes_of(COMPUTE, "T")
  if divided:
    add("hidden states to the head", "all-gather", seq, batches * 3, hidden * s.seq)
    add("gradients of hidden states", "reduce-scatter", seq, batches, hidden * s.seq)
  held = (L * layer * c + 2 * s.vocab * D * 4) / s.stored
  add("gradients of copies", "all-reduce", copies, batches, held)

  tensor = axes_of(COMPUTE, "H")
  if config.optimizer.name == "muon":  # gradients and momentum to the devices of layers, and back
    add("matrices of layers", "exchange", (*storage, *tensor), 4, L * layer * 4 / s.stored)
  add("activations", "all-reduce", tensor, batches * (4 + again) * L, hidden)
  add("embedding and loss", "all-reduce", tensor, batches * 2, hidden)

  for own in m.by_system.values():
    if not own.memory.matrix:
      continue
    E = m.head_dim
    heads = s.lanes * s.kv_heads * 4  # float32, for each lane and head
    state, left = heads * E * (E + 1), heads * (E * E if own.memory.affine else 1) + heads
    passes = batches * own.layers * (3 if again else 2)
    if s.seq <= GATHERED:
      add("memories", "all-gather", seq, passes, (state + left) * s.seq)
    else:
      rounds = math.ceil(math.log2(s.seq))
      add("memories", "permute", seq, passes * rounds, state + left)
      add("memories handed on", "permute", seq, passes, state)
      add("memories at the end", "all-reduce", seq, passes, state)
  return found


def leaves_island(axes: tuple[str, ...], sizes: dict[str, int], chip: Chip) -> bool:
  """Whether neighbours along these axes are on different islands (TPU slices, or GPU hosts)."""
  if "dcn" in axes:
    return True
  if not chip.island:
    return False
  inner = AXES[AXES.index(axes[0]) :]  # the first axis changes slowest
  return math.prod(sizes[axis] for axis in inner) > chip.island


def memory_traffic(config: Config, s: PerChip, params: float, optimizer: float) -> float:
  """A lower bound on the bytes between a chip and its HBM in a step: each operand is moved once.

  Every matrix product reads its operands and writes its result. The operations between products
  (norms, gates, softmax) are assumed to be fused. The backward pass moves twice as much as the
  forward pass.
  """
  m, t = config.model, config.train
  D, E, c = m.width, m.head_dim, s.compute
  up = 2 if m.gated_ffn else 1
  weights = D * E * 2 * (s.heads + s.kv_heads) + D * s.ffn * (up + 1)
  qkv = D + (s.heads + 2 * s.kv_heads) * E
  mixing = (2 * s.heads + 2 * s.kv_heads) * E
  ffn = 2 * D + s.ffn * (up + 1)
  passes = 3 + (m.run.remat not in ("none", "dots"))
  layers = 0
  for own in m.by_system.values():
    moved = mixing * (2 if own.memory.matrix else 1)  # the memory moves them again
    forward = s.tokens * (qkv + moved + s.heads * E + D + ffn)
    layers += own.layers * c * (forward * passes + weights * (passes + 1))
  loss = s.tokens * s.vocab * 4 * 4 + s.vocab * D * 4 * c
  update = 2 * (params + optimizer + params)
  return t.accumulate * (layers + loss) + update
