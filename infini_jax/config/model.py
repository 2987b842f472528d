"""The sections of a model: its sizes, family, adapters, and how it is computed."""

import dataclasses
from typing import Any, ClassVar

from infini_jax.config.bounds import InputError, Where, above, at_least, choice, choices
from infini_jax.config.pattern import BySystem, sections_of
from infini_jax.config.systems import SYSTEMS

KERNELS = ("auto", "reference", "xla", "splash", "cudnn")
IMPLEMENTATIONS = ("auto", "scan", "parallel", "kernels")
ACTIVATIONS = ("swiglu", "geglu", "gelu")
REMAT_POLICIES = ("none", "full", "dots", "offload", "auto")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SizesConfig:
  """The sizes of a decoder like Llama, and the memory system of its attention layers."""

  mixer: str = choice("infini", tuple(SYSTEMS))  # the memory system: docs/mixers.md
  pattern: tuple[str, ...] = choices((), tuple(SYSTEMS))  # of layers, repeated; (): all have mixer
  layers: int = above(0, 4)  # L
  width: int = above(0, 256)  # D
  width_base: int = at_least(0, 0)  # rates are given for this width; 0: for D: docs/widths.md
  heads: int = above(0, 4)  # H
  kv_heads: int = above(0, 4)  # K; H is a multiple of K
  head_dim: int = above(0, 64)  # E = U
  ffn: int = above(0, 1024)  # F
  vocab_size: int = above(0, 257)  # V; at least the tokenizer's size
  segment_length: int = above(0, 256)  # N
  activation: str = choice("swiglu", ACTIVATIONS)  # of the feed-forward layers
  tied_embeddings: bool = True

  def check(self) -> None:
    """Raises InputError, with the remedy, if sizes contradict each other."""
    if self.heads % self.kv_heads:
      raise InputError(
        f"config.model.heads={self.heads} is not a multiple of config.model.kv_heads="
        f"{self.kv_heads}: each key/value head serves the same number of query heads"
      )
    if self.head_dim % 2:
      raise InputError(
        f"config.model.head_dim={self.head_dim}: rotary positions rotate pairs, choose an even size"
      )
    if self.width_base > self.width:
      raise InputError(
        f"config.model.width_base={self.width_base} is more than config.model.width={self.width}: "
        f"it is the width of a narrower model whose rates are given; set it to {self.width} at "
        f"most, or 0"
      )
    for name in self.pattern:
      if why := SYSTEMS[name].in_pattern:
        raise InputError(
          f"config.model.pattern={self.pattern}: {name!r} cannot be some of the layers, because "
          f"{why}; set config.model.pattern=() and config.model.mixer={name!r}, or leave it out"
        )
    if self.pattern and self.layers % len(self.pattern):
      over = -(-self.layers // len(self.pattern)) * len(self.pattern)
      raise InputError(
        f"config.model.pattern={self.pattern}: its {len(self.pattern)} layers do not divide "
        f"config.model.layers={self.layers}; set config.model.layers={over}, or a pattern that does"
      )

  @property
  def gated_ffn(self) -> bool:
    """Whether the feed-forward layers have a gate, which is a third matrix."""
    return self.activation != "gelu"

  @property
  def init_width(self) -> int:
    """The width that embeddings are drawn for: their size does not change above `width_base`."""
    return self.width_base or self.width

  @property
  def width_ratio(self) -> float:
    """base / width, by which muP multiplies logits and the rates of hidden matrices; else 1."""
    return self.init_width / self.width


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
  """How a pretrained family differs from Llama."""

  rope_theta: float = above(0, 10_000.0)
  rope_scaling: tuple[float, ...] = ()  # (factor,), or that of Llama 3 or YaRN: see ops/rotary.py
  norm_eps: float = above(0, 1e-5)
  norm_plus_one: bool = False  # norms multiply by 1 + their parameter (Gemma)
  qk_norm: bool = False  # RMSNorm over each head of queries and keys
  attention_bias: bool = False  # biases of queries, keys and values (Qwen 2)
  post_norms: bool = False  # norms also after attention and feed-forward (Gemma)
  embed_scale: float = above(0, 1.0)  # embeddings are multiplied by it (Gemma: sqrt(D))
  query_scale: float = at_least(0, 0.0)  # scores are multiplied by it; 0: 1/sqrt(E)
  attention_softcap: float = at_least(0, 0.0)  # scores s: cap * tanh(s / cap) (Gemma 2); 0: off
  logit_softcap: float = at_least(0, 0.0)  # the same for logits
  window: int = at_least(0, 0)  # tokens that a query of a windowed layer attends to; 0: all
  global_every: int = at_least(0, 0)  # every n-th layer attends to all; 0: no such layer
  global_nope: bool = False  # those layers use no rotary positions (SmolLM3)
  window_theta: float = at_least(0, 0.0)  # rope_theta of windowed layers (Gemma 3); 0: rope_theta

  def check(self) -> None:
    """Raises InputError, with the remedy, if these fields contradict each other."""
    scaling = self.rope_scaling
    if len(scaling) not in (0, 1, 4, 5) or min(scaling, default=1) <= 0:
      raise InputError(
        f"config.family.rope_scaling={scaling}: give (factor,), or (factor, low, high, original) "
        f"as Llama 3 has, and magnitude behind it for YaRN, all more than 0"
      )
    if len(scaling) > 1 and scaling[1] >= scaling[2]:
      raise InputError(
        f"config.family.rope_scaling={scaling}: its low={scaling[1]} must be below "
        f"high={scaling[2]}"
      )
    if self.global_nope and not self.global_every:
      raise InputError(
        "config.family.global_nope=True with config.family.global_every=0: no layer is global; set "
        "config.family.global_every, or config.family.global_nope=False"
      )
    for name, used in (
      ("global_every", self.window or self.global_nope),
      ("window_theta", self.window),
    ):
      if (value := getattr(self, name)) and not used:
        raise InputError(
          f"config.family.{name}={value} without a window: set config.family.window, or it to 0"
        )


@dataclasses.dataclass(frozen=True)
class AdaptersConfig:
  """Low-rank adapters, which are added to the projections of attention."""

  where: ClassVar[Where] = {"adapters.rank": "alpha"}

  rank: int = at_least(0, 0)  # R; 0: none
  alpha: float = above(0, 16.0)  # the output of an adapter is multiplied by alpha / rank


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """How a model is computed on a machine.

  The types belong to the numbers of a model: they stay with it on any machine. All other fields are
  of the machine (`HOW_TO_RUN`).
  """

  where: ClassVar[Where] = {"memory.matrix": "implementation", "memory.kernels": "attention"}

  remat: str = choice("full", REMAT_POLICIES)  # what is recomputed for the gradient
  implementation: str = choice("auto", IMPLEMENTATIONS)  # how segments are computed: docs/scale.md
  attention: str = choice("auto", KERNELS)  # kernel inside segments; splash: TPU
  compute_dtype: str = choice("float32", DTYPES, numbers=True)
  param_dtype: str = choice("float32", DTYPES, numbers=True)  # of stored parameters: docs/scale.md
  compilation_cache: str = "auto"  # a folder for compiled programs; auto: the user's; empty: none


# Fields of `run` that depend on the machine only: they are not copied with a model.
HOW_TO_RUN = tuple(f.name for f in dataclasses.fields(RunConfig) if not f.metadata.get("numbers"))


@dataclasses.dataclass(frozen=True)
class ModelConfig(SizesConfig, BySystem):
  """A whole model: sizes, family, its memory system, adapters, and how it is computed.

  `memory` has the class that `mixer` names, or is the `Pattern` of `pattern`. It may be given as a
  tuple of sections. A section that is not given, or is of another system, has the defaults.
  """

  family: FamilyConfig = FamilyConfig()
  memory: Any = None
  adapters: AdaptersConfig = AdaptersConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    object.__setattr__(self, "memory", sections_of(self.mixer, self.pattern, self.memory))

  def check(self) -> None:
    """Raises InputError, with the remedy, if fields of the model contradict each other."""
    super().check()
    self.family.check()
    f = self.family
    if self.run.attention == "cudnn" and f.attention_softcap:
      raise InputError(
        f"config.run.attention='cudnn' with config.family.attention_softcap={f.attention_softcap}: "
        f"it cannot cap scores; set config.run.attention='auto'"
      )
    for name in ("window", "global_nope", "query_scale", "attention_softcap"):
      if (value := getattr(f, name)) and not self.memory.windows:
        able = [name for name, system in SYSTEMS.items() if system.windows]
        raise InputError(
          f"config.family.{name}={value} with config.{self.setting}: only "
          f"{', '.join(able)} can do it; set it 0"
        )
    if not self.is_plain and f.window and self.segment_length > f.window:
      raise InputError(
        f"config.model.segment_length={self.segment_length} is more than config.family.window="
        f"{f.window}: set config.model.segment_length to at most the window"
      )
    for own in self.by_system.values():
      own.memory.check(own)
