"""The memory systems in a config: the fields of each, and the facts that other modules read.

A system is one class here (its section of the config), one module of `models/mixers` (parameters,
computation, costs) and one line in each of the two registries. Other code never compares the name
of a system; it reads a fact.
"""

import dataclasses
from typing import Any, ClassVar

from infini_jax.config.bounds import InputError, Where, above, at_least, choice
from infini_jax.rules import GATES, RULES

COMPRESSIONS = ("conv", "mean")
NO_GRADIENT = 3.0  # a hard sigmoid has no gradient for |beta| from here on


@dataclasses.dataclass(frozen=True)
class System:
  """The facts of a memory system that other modules read; a subclass adds the fields."""

  name: ClassVar[str] = ""  # its key in `SYSTEMS`
  remembers: ClassVar[bool] = True  # a segment can use the segments before it
  grows: ClassVar[bool] = False  # attention over the whole text: the state grows with each token
  gated: ClassVar[bool] = False  # each query head has a gate
  layered: ClassVar[bool] = True  # each layer has its own state, and its reads can be cut alone
  windows: ClassVar[bool] = False  # it supports the family's windows, score scales and soft caps
  kernels: ClassVar[bool] = False  # `run.attention` chooses the kernel of its local attention
  any_length: ClassVar[bool] = False  # its state does not depend on the length of a segment
  exports: ClassVar[bool] = False  # its parameters are those of Llama, and gates
  in_torch: ClassVar[bool] = False  # `convert/torch_model` has its layers
  matrix: ClassVar[bool] = False  # its state is M and z; `run.implementation` says how they run
  learned_decay: ClassVar[bool] = False  # how much of M a segment leaves depends on its tokens
  keeps_segment: ClassVar[bool] = False  # its state holds all tokens of the segment before
  moves_borders: ClassVar[bool] = False  # in training, segments end at random positions
  in_pattern: ClassVar[str] = ""  # why it cannot be some of the layers of `model.pattern`

  # Facts that are fields where a system has a choice.
  gate = ""  # of a gated system, the function of its gates: `rules.GATES`
  gate_init = 0.0  # of a gated system, beta at the start
  adapter_rank = 0  # of adapters that the memory has for itself; 0: none
  write_penalty = 0.0  # the weight in the loss of the mean fraction of a token that is written

  @property
  def affine(self) -> bool:
    """Whether a segment changes a matrix memory by an affine map, and not by adding to it."""
    return False

  @property
  def label(self) -> str:
    """The text that a report writes after the name of the system."""
    return ""

  def with_memory(self, layers: int) -> tuple[bool, ...]:
    """Which of the layers have a memory."""
    return (True,) * layers

  def ablated(self, layers: int) -> tuple[bool, ...]:
    """Which of the layers an ablation acts on."""
    return (True,) * layers

  def check(self, model: Any) -> None:
    """Raises InputError if fields contradict each other, or the sizes of the model."""

  def not_divided(self, implementation: str) -> tuple[str, str] | None:
    """Why segments cannot be divided among devices: the setting, and the remedy; None: they can.

    Args:
      implementation: `run.implementation`.
    """
    return "", "its tokens see those of other segments; set config.mesh.seq=1"

  def not_additive(self) -> str | None:
    """The setting for which the state is not a sum over the text; None: it is a sum.

    In a sum, a piece of text can count several times, as `warm.growth` needs.
    """
    return ""

  def not_exported(self) -> str | None:
    """The setting that no published format supports; None: all settings are supported."""
    return None


@dataclasses.dataclass(frozen=True)
class Infini(System):
  """Infini-attention: docs/memory.md."""

  gated = windows = kernels = any_length = exports = in_torch = matrix = True
  where: ClassVar[Where] = {"infini.write_gate": "write_penalty"}

  rule: str = choice("linear", tuple(RULES))  # how the memory is written
  gate: str = choice("sigmoid", GATES)  # of beta; hard_sigmoid can reach 0 and 1
  gate_init: float = 0.0  # beta at the start: 0 from scratch, about -5 to adapt a trained model
  write_gate: bool = False  # a learned share of each token is written: hard_sigmoid(x w + b)
  write_penalty: float = at_least(0, 0.0)  # weight in the loss of the mean fraction written
  adapter_rank: int = at_least(0, 0)  # R of adapters for the memory's q, k, v only; 0: none
  scale_first_segment: bool = False  # True: (1 - gate) while memory is empty, as in the paper
  normalize_keys: bool = False  # each stored key weighs 1 in z (Schlag et al., 2021)
  z_correction: bool = False  # z grows only by the new part of a key (ARMT)
  decay: float = above(
    0, 1.0, most=1, says="must be above 0, and at most 1 (no decay)"
  )  # the factor of the memory at each compression; below 1 old text fades
  readout_norm: bool = False  # RMSNorm without scale over the read-out of each head

  @property
  def affine(self) -> bool:
    """True for a rule that subtracts the values that the keys recall."""
    return RULES[self.rule].affine

  @property
  def label(self) -> str:
    """The rule."""
    return self.rule

  def check(self, model: Any) -> None:
    """Checks the gate, and that z is corrected with the delta rule only."""
    name = self.name
    _check_gate(self)
    if self.z_correction and not self.affine:
      other = next(rule for rule, facts in RULES.items() if facts.affine)
      raise InputError(
        f"config.{name}.z_correction=True with config.{name}.rule={self.rule!r}: its read-outs "
        f"would grow without limit, because z does not grow; set config.{name}.rule={other!r}"
      )
    refined = [field for field in NO_KERNELS if getattr(self, field)]
    if model.run.implementation == "kernels" and refined:
      raise InputError(
        f"config.run.implementation='kernels' with config.{name}.{refined[0]}=True: the kernels do "
        f"not have it; set config.run.implementation='auto'"
      )

  def not_divided(self, implementation: str) -> tuple[str, str] | None:
    """A scan over segments, and z_correction, where every token needs z."""
    if implementation == "scan":
      what = "run.implementation='scan'"
      return what, "segments that wait for each other; set config.run.implementation='parallel'"
    if self.z_correction:
      return f"{self.name}.z_correction=True", "each token needs z; set config.mesh.seq=1"
    return None

  def not_additive(self) -> str | None:
    """Settings with which earlier text changes what later text adds."""
    if self.decay != 1:
      return f"{self.name}.decay={self.decay}"
    return f"{self.name}.z_correction=True" if self.z_correction else None

  def not_exported(self) -> str | None:
    """Settings that add parameters that Llama does not have."""
    if self.write_gate:
      return f"{self.name}.write_gate=True"
    return f"{self.name}.adapter_rank={self.adapter_rank}" if self.adapter_rank else None


# Refinements of Infini-attention that its kernels do not have, `ops.infini.no_kernels`.
NO_KERNELS = ("normalize_keys", "z_correction", "readout_norm")


@dataclasses.dataclass(frozen=True)
class GatedDelta(Infini):
  """The delta rule with a learned decay for each head and segment (arXiv 2412.06464, adapted)."""

  exports = False
  learned_decay = True
  where: ClassVar[Where] = {"gated_delta.write_gate": "write_penalty"}

  rule: str = choice("delta", tuple(RULES))
  decay_init: float = 4.0  # at the start, a segment keeps sigmoid(decay_init) of the memory

  def not_additive(self) -> str | None:
    """Always: later text sets the decay of earlier text."""
    return ""


@dataclasses.dataclass(frozen=True)
class Local(System):
  """Attention inside each segment only."""

  remembers = False
  windows = kernels = any_length = exports = in_torch = True

  def not_divided(self, implementation: str) -> tuple[str, str] | None:
    """Always possible: segments are independent."""
    return None


@dataclasses.dataclass(frozen=True)
class Full(System):
  """Attention over the whole document."""

  grows = windows = any_length = exports = True


@dataclasses.dataclass(frozen=True)
class TransformerXL(System):
  """Transformer-XL (arXiv 1901.02860): attention to this segment and the one before."""

  keeps_segment = True


@dataclasses.dataclass(frozen=True)
class Compressive(System):
  """Compressive Transformers (arXiv 1911.05507)."""

  keeps_segment = True

  compression: str = choice("conv", COMPRESSIONS)  # how hidden states are compressed
  compression_rate: int = above(0, 4)  # how many hidden states become one
  compressed_memory: int = above(0, 512)  # C: compressed hidden states of a lane and layer

  def check(self, model: Any) -> None:
    """Checks that the rate divides the segment length."""
    if model.segment_length % self.compression_rate:
      raise InputError(
        f"config.compressive.compression_rate={self.compression_rate} does not divide "
        f"config.model.segment_length={model.segment_length}: a segment is compressed whole"
      )


@dataclasses.dataclass(frozen=True)
class Memorizing(System):
  """Memorizing Transformers (arXiv 2203.08913)."""

  gated = keeps_segment = True
  in_pattern = "knn_layers chooses its layers"

  knn_layers: tuple[int, ...] = (9,)  # the layers with a store, from 1
  knn_memory: int = above(0, 65_536)  # J: keys of each lane and head in each store
  knn_top: int = above(0, 32)  # how many of the stored keys a query attends to
  gate: str = choice("sigmoid", GATES)  # of beta; hard_sigmoid can reach 0 and 1
  gate_init: float = 0.0  # beta at the start

  def with_memory(self, layers: int) -> tuple[bool, ...]:
    """True for the layers with a store."""
    return tuple(layer + 1 in self.knn_layers for layer in range(layers))

  def check(self, model: Any) -> None:
    """Checks the layers with a store, and the gate."""
    _check_gate(self)
    for layer in self.knn_layers:
      if not 1 <= layer <= model.layers:
        raise InputError(
          f"config.memorizing.knn_layers={self.knn_layers}: there is no layer {layer}; they are "
          f"counted from 1 to config.model.layers={model.layers}"
        )


@dataclasses.dataclass(frozen=True)
class Summaries(System):
  """The systems whose memory is summary embeddings, the same for all layers."""

  layered = False
  in_pattern = "its memory is that of all layers together"

  summary_tokens: int = above(0, 50)  # P: summary embeddings of a segment

  @property
  def prefix_length(self) -> int:
    """A, the summaries in front of a segment."""
    return self.summary_tokens


@dataclasses.dataclass(frozen=True)
class Rmt(Summaries):
  """RMT (arXiv 2207.06881)."""


@dataclasses.dataclass(frozen=True)
class Autocompressor(Summaries):
  """AutoCompressors (arXiv 2305.14788)."""

  moves_borders = True

  summary_steps: int = above(0, 4)  # the summaries of this many segments are kept
  segment_jitter: float = at_least(0, 1 / 3, most=0.99)  # training segments have (1 +- it) N tokens

  @property
  def prefix_length(self) -> int:
    """A, the summaries of all kept segments."""
    return self.summary_tokens * self.summary_steps


SYSTEMS: dict[str, type[System]] = {
  "infini": Infini,
  "gated_delta": GatedDelta,
  "local": Local,
  "full": Full,
  "transformer_xl": TransformerXL,
  "compressive": Compressive,
  "memorizing": Memorizing,
  "rmt": Rmt,
  "autocompressor": Autocompressor,
}
for _name, _system in SYSTEMS.items():
  _system.name = _name


def _check_gate(system: Any) -> None:
  name = system.name
  if system.gate == "hard_sigmoid" and abs(system.gate_init) >= NO_GRADIENT:
    raise InputError(
      f"config.{name}.gate_init={system.gate_init} with config.{name}.gate='hard_sigmoid': it has "
      f"no gradient from 3 on; set gate_init to -2.9 to adapt a trained model"
    )
