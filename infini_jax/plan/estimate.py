"""Estimates a training step by arithmetic: bytes per chip, collectives, and a roofline in seconds.

The bytes between steps are exact: they follow from the shardings. The bytes during a step are
modelled, because XLA decides them; the compiled program (`plan.compiled`) gives the true figure.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.config import Config, ModelConfig, original
from infini_jax.models.costs import executed_flops_per_token, flops_per_token, forward_flops
from infini_jax.models.mixers import MIXERS
from infini_jax.parallel.chips import Chip
from infini_jax.plan.per_chip import (
  PerChip,
  abstract_mesh,
  chip_bytes,
  laid_out,
  of_system,
  per_chip,
  spec_text,
)
from infini_jax.plan.traffic import Collective, collectives, memory_traffic
from infini_jax.training.muon import divides_layers, is_matrix
from infini_jax.training.step import abstract_teacher
from infini_jax.training.trainable import split


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One tensor of the model: its path in the tree, and the bytes that one chip holds of it."""

  name: str
  shape: tuple[int, ...]
  sharding: str
  numbers: int
  chip_bytes: int


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One training step of a config on a mesh of one kind of chip.

  Attributes:
    sizes: devices along each axis of the mesh.
    resting: bytes per chip between steps: parameters, optimizer, memory state, and more where a
      run has it. Exact.
    working: additional bytes per chip in the phase of a step that needs most. Modelled.
    phase: the name of that phase.
    tokens: tokens of a step, all chips together.
    flops: FLOPs per token: `model` (strict), `executed`, and `full attention`: a model of the same
      size that attends to all of T.
    seconds: time of a step at the chip's peak rates, for each resource alone.
  """

  config: Config
  chip: Chip
  sizes: dict[str, int]
  parameters: tuple[Parameter, ...]
  resting: dict[str, float]
  working: dict[str, float]
  phase: str
  collectives: tuple[Collective, ...]
  tokens: int
  flops: dict[str, float]
  seconds: dict[str, float]

  @property
  def chips(self) -> int:
    """Chips of the mesh."""
    size = 1
    for n in self.sizes.values():
      size *= n
    return size

  @property
  def bytes(self) -> dict[str, float]:
    """Bytes per chip in the phase of a step that needs most, by consumer."""
    return {**self.resting, **self.working}

  @property
  def total(self) -> float:
    """Bytes per chip in the phase of a step that needs most."""
    return sum(self.bytes.values())

  def mfu(self, seconds: float) -> float:
    """Of a step of these seconds: its strict model FLOPs, as a share of the chips' peak."""
    return self.flops["model"] * self.tokens / (seconds * self.chips * self.chip.peak)

  @property
  def bound(self) -> float:
    """The largest possible MFU: every resource at its peak, fully overlapped."""
    return self.mfu(max(self.seconds.values()))

  @property
  def unoverlapped(self) -> float:
    """The MFU if compute, memory and communication do not overlap."""
    return self.mfu(sum(self.seconds.values()))


def estimate(config: Config, sizes: dict[str, int], chip: Chip) -> Estimate:
  """Estimates a training step of `config`; `sizes` must divide it (`check_divisible`)."""
  m, t = config.model, config.train
  state = laid_out(config, sizes)
  resting = {
    "parameters": chip_bytes(state.params),
    "optimizer": chip_bytes(state.opt_state),
    "memory state": chip_bytes((state.memory, state.warm)),
  }
  if state.ema is not None:
    resting["moving average"] = chip_bytes(state.ema)
  if teacher := abstract_teacher(config, abstract_mesh(sizes)):
    resting["original"] = chip_bytes(teacher)
  on_chip = per_chip(config, sizes, chip.platform)
  phase, working = _working(config, on_chip, split(config, state.params)[0])

  T = config.data.segments * m.segment_length
  tokens = config.data.lanes * T
  head_again = bool(t.distill_weight) and on_chip.segments * m.segment_length > t.loss_chunk
  full = dataclasses.replace(m, mixer="full", pattern=())
  flops = {
    "model": flops_per_token(m, T, t.part),
    "executed": executed_flops_per_token(m, T, t.part, block=on_chip.block, head_again=head_again)
    + _reading_along(config, T)
    + (sum(forward_flops(original(m), T).values()) if t.distill_weight else 0.0),
    "full attention": flops_per_token(full, T, t.part),
  }
  sent = collectives(config, on_chip, sizes, chip)
  chips = 1
  for n in sizes.values():
    chips *= n
  statistics = resting["optimizer"] + resting.get("moving average", 0)
  moved = memory_traffic(config, on_chip, resting["parameters"], statistics)
  seconds = {
    "compute": flops["executed"] * tokens / (chips * chip.peak),
    "HBM": moved / chip.memory_rate,
    "interconnect": sum(c.bytes for c in sent if not c.network) / chip.link_rate,
    "network": sum(c.bytes for c in sent if c.network) / chip.network_rate,
  }
  return Estimate(
    config=config,
    chip=chip,
    sizes=dict(sizes),
    parameters=tuple(_parameters(state.params)),
    resting={name: float(n) for name, n in resting.items()},
    working=working,
    phase=phase,
    collectives=tuple(sent),
    tokens=tokens,
    flops=flops,
    seconds=seconds,
  )


def _reading_along(config: Config, T: int) -> float:
  """FLOPs per training token of the companions of warm memories: forward only, without a head."""
  if not config.warm.share:
    return 0.0
  parts = forward_flops(config.model, T)
  return (sum(parts.values()) - parts["head"]) * config.warm.segments / config.data.segments


def _in_float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.update(dtype=jnp.float32), tree)


def _parameters(params: Any) -> list[Parameter]:
  return [
    Parameter(
      ".".join(key.key for key in path),
      leaf.shape,
      spec_text(leaf.sharding.spec),
      leaf.size,
      chip_bytes(leaf),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]


def _working(config: Config, s: PerChip, params: Any) -> tuple[str, dict[str, float]]:
  """The phase of a step that needs most memory, and its items in bytes. `params` have a gradient.

  Modelled on compiled steps: in the loss, each chip holds the rows of the head that it uses, and
  their gradient twice (its own, and the sum), in the type of the stored parameter.
  """
  m, t = config.model, config.train
  D, E, c, stored = m.width, m.head_dim, s.compute, 4 if m.run.param_dtype == "float32" else 2
  layer_weights = D * E * 2 * (s.heads + s.kv_heads) + D * s.ffn * (3 if m.gated_ffn else 2)
  layers = [(own.layers, *_layer(own, of_system(s, own))) for own in m.by_system.values()]
  saved = sum(count * kept for count, kept, _ in layers)
  if m.run.remat == "none" and s.stored > 1:
    saved += m.layers * layer_weights * c  # gathered weights are kept too
  # A gradient has the type of its parameter; the sum over microbatches is float32.
  trained = float(chip_bytes(params))
  sums = float(chip_bytes(_in_float32(params))) if t.accumulate > 1 else 0.0

  tokens_of_lane = s.tokens // max(s.lanes, 1)
  logits = s.lanes * min(t.loss_chunk, tokens_of_lane) * s.vocab * (4 + 4 + c)
  head = s.head_rows * D
  phases = {
    "the loss": {
      "activations kept for the gradient": saved,
      "gradients": sums + head * (stored if s.stored == 1 else 2 * stored),
      "gathered weights": head * c if s.stored > 1 or c != stored else 0,
      "logits": logits,
      "hidden states": 3 * s.tokens * D * c,
    },
    "a layer's gradient": {
      "activations kept for the gradient": saved,
      "gradients": sums + trained + layer_weights * c,
      "gathered weights": layer_weights * c if s.stored > 1 or c != stored else 0,
      "one layer": max(one for _, _, one in layers),
    },
    "the update": {
      "gradients": sums + trained,
      "whole matrices": _whole_matrices(params) if config.optimizer.name == "muon" else 0.0,
      "hidden states": s.tokens * D * c,
    },
  }
  phase = max(phases, key=lambda name: sum(phases[name].values()))
  return phase, {name: float(n) for name, n in phases[phase].items() if n}


def _whole_matrices(params: Any) -> float:
  """Bytes of what Muon moves to the devices of layers, in float32.

  These are a gradient, a momentum and a parameter, and an update and a momentum that go back. On
  one device nothing moves, and only the last two are new. `params` have a gradient.
  """
  found = 0.0
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if is_matrix(path):
      sizes = x.sharding.mesh.shape
      axes = divides_layers(x.shape[0], sizes)
      arrays = 5 if x.sharding.mesh.size > 1 else 2
      found += arrays * 4 * x.size / math.prod(sizes[axis] for axis in axes)
  return found


def _layer(m: ModelConfig, s: PerChip) -> tuple[float, float]:
  """Bytes that a layer keeps for the gradient, and that its own gradient needs.

  `m` has one memory system.
  """
  D, E, c = m.width, m.head_dim, s.compute
  rows, keys, more, row_bytes, state = MIXERS[m.mixer].work(m, s)
  products = (2 * s.heads + 2 * s.kv_heads) * E + D + s.ffn * (2 if m.gated_ffn else 1)
  activations = rows * (c * (products + 2 * D + 2 * s.ffn) + row_bytes)
  scores = 0.0
  if s.kernel in ("xla", "reference"):
    squares = 1 if m.memory.grows or s.kernel == "xla" else s.segments  # 1: one segment at a time
    scores = s.lanes * squares * s.heads * s.block * keys * (4 + c)

  # Without rematerialization, float32 copies of the norms and of the gate's inputs are kept too.
  copies = rows * (4 * (4 * D + 4 * s.heads * E) + c * s.ffn)
  kept = {"none": activations + copies + rows * D * c, "full": rows * D * c}
  kept["dots"] = kept["full"] + rows * c * products
  kept["auto"] = kept["full"]
  kept["offload"] = 0  # in the host's memory
  return kept[m.run.remat] + state, activations + scores + more
