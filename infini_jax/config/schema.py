"""The fields of an experiment, as frozen dataclasses: what each means, its default, its bounds.

Letters are those of the glossary: B lanes, T = S*N tokens of a chunk, S segments of a chunk,
N tokens of a segment, D width, H query heads, K key/value heads, E head size, F feed-forward,
V vocabulary, L layers, R rank of adapters.
"""

import dataclasses
import json
from typing import Any

from infini_jax.config.bounds import above, at_least, choice, choices
from infini_jax.config.systems import SYSTEMS, System

TASKS = ("text", "passkey", "recall", "needle", "summarization")
FAMILIES = (
  "single",
  "multikey",
  "multivalue",
  "multiquery",
  "variables",
  "facts",
  "common_words",
  "frequent_words",
)
KNOCK_OUTS = ("empty", "reads", "layers", "swap")
KERNELS = ("auto", "reference", "xla", "splash", "cudnn")
IMPLEMENTATIONS = ("auto", "scan", "parallel")
ACTIVATIONS = ("swiglu", "geglu", "gelu")
REMAT_POLICIES = ("none", "full", "dots", "offload")
PARTS = ("all", "gates", "attention", "lora")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "adafactor")
SPLITS = ("train", "validation", "test")
ALL_SPLITS = "all"  # of them, where an evaluation reads
LEAST, MOST = 1e-15, 1e15  # of what logits are divided by: float32 must hold what comes out


@dataclasses.dataclass(frozen=True)
class SizesConfig:
  """A decoder like Llama's: its sizes, and the memory system of its attention layers."""

  mixer: str = choice("infini", tuple(SYSTEMS))  # the memory system: docs/mixers.md
  layers: int = above(0, 4)  # L
  width: int = above(0, 256)  # D
  heads: int = above(0, 4)  # H
  kv_heads: int = above(0, 4)  # K; H is a multiple of K
  head_dim: int = above(0, 64)  # E = U
  ffn: int = above(0, 1024)  # F
  vocab_size: int = above(0, 257)  # V; at least the tokenizer's size
  segment_length: int = above(0, 256)  # N
  activation: str = choice("swiglu", ACTIVATIONS)  # of the feed-forward
  tied_embeddings: bool = True

  @property
  def gated_ffn(self) -> bool:
    """Whether the feed-forward has a gate: a third matrix."""
    return self.activation != "gelu"


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
  """How a pretrained family differs from Llama."""

  rope_theta: float = above(0, 10_000.0)
  rope_scaling: tuple[float, ...] = ()  # (factor,); Llama 3's and YaRN's: see ops/rotary.py
  norm_eps: float = above(0, 1e-5)
  norm_plus_one: bool = False  # norms scale by 1 + their parameter (Gemma)
  qk_norm: bool = False  # RMSNorm over each query's and key's head
  attention_bias: bool = False  # of queries, keys and values (Qwen 2)
  post_norms: bool = False  # norms behind attention and feed-forward too (Gemma)
  embed_scale: float = above(0, 1.0)  # embeddings are multiplied by it (Gemma: sqrt(D))
  query_scale: float = at_least(0, 0.0)  # scores are multiplied by it; 0: 1/sqrt(E)
  attention_softcap: float = at_least(0, 0.0)  # scores s: cap * tanh(s / cap) (Gemma 2); 0: off
  logit_softcap: float = at_least(0, 0.0)  # the same of logits
  window: int = at_least(0, 0)  # tokens that a query of a windowed layer sees; 0: all
  global_every: int = at_least(0, 0)  # every such layer sees all; 0: every layer has the window
  global_nope: bool = False  # those layers rotate nothing by its position (SmolLM3)
  window_theta: float = at_least(0, 0.0)  # of windowed layers (Gemma 3); 0: rope_theta


@dataclasses.dataclass(frozen=True)
class AdaptersConfig:
  """Low-rank adapters beside the projections of attention."""

  rank: int = at_least(0, 0)  # R; 0: none
  alpha: float = above(0, 16.0)  # what an adapter adds is scaled by alpha / rank


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """How a model is computed on a machine."""

  remat: str = choice("full", REMAT_POLICIES)  # recomputed for the gradient
  implementation: str = choice("auto", IMPLEMENTATIONS)  # how the segments are run
  attention: str = choice("auto", KERNELS)  # kernel inside segments; splash: TPU
  compute_dtype: str = choice("float32", DTYPES)
  param_dtype: str = choice("float32", DTYPES)  # in which parameters are kept: docs/scale.md
  compilation_cache: str = ""  # a folder, to compile a program once for all runs; empty: none


@dataclasses.dataclass(frozen=True)
class ModelConfig(SizesConfig):
  """A whole model: sizes, family, its memory system, adapters, and how it is computed.

  `memory` is of the class that `mixer` names: one of another class is replaced by its defaults.
  """

  family: FamilyConfig = FamilyConfig()
  memory: Any = None
  adapters: AdaptersConfig = AdaptersConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    system = SYSTEMS.get(self.mixer, System)
    if type(self.memory) is not system:
      object.__setattr__(self, "memory", system())


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Documents in lanes: a lane follows one document until it ends.

  The tokenizer `run` is that of the run, at first of `train.start_from`; `task` is the task's own.
  """

  path: str = ""  # a prepared store, a corpus, or mix:STORE=WEIGHT,...: docs/data.md
  tokenizer: str = "bytes"  # or train:SIZE, sentencepiece:FILE, huggingface:FILE, run, task
  lanes: int = above(0, 8)  # B, over all hosts
  segments: int = above(0, 4)  # S; a training chunk holds T = S*N tokens of each lane
  carry_state: bool = True  # carry each lane's state from step to step, without gradient through it
  prefetch: int = above(0, 4)  # batches read ahead


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is learned: documents of `data.path`, or examples made on the spot, each with an answer.

  A task's example is whole in one chunk: the gradient goes from the answer back to its first token.
  The loss weighs an answer 1, whatever its length.
  """

  name: str = choice("text", TASKS)  # text, summarization, passkey, recall or needle
  digits: int = above(0, 4)  # passkey: of the key
  late: float = at_least(0, 0.0, most=1)  # passkey: share of training's keys near the end
  pairs: int = above(0, 32)  # recall: keys with their values in an example
  distinct_keys: int = above(0, 64)  # recall: different keys
  distinct_values: int = above(0, 64)  # recall: different values
  span: int = at_least(0, 0)  # recall: all pairs stand in the first so many tokens; 0: anywhere
  min_segments: int = above(0, 2)  # of the shortest example; the longest has data.segments
  curriculum_steps: int = at_least(0, 0)  # in which the longest grows from the shortest
  repeat_weight: float = at_least(0, 0.3)  # passkey: loss weight of the key's second copy
  context_weight: float = at_least(0, 0.5)  # loss weight of all the rest of an example


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
  """The task `needle`: what hides in a text, and what is asked. docs/needles.md."""

  family: str = choice("single", FAMILIES)  # what hides in a text, and what is asked
  needles: int = at_least(1, 4, most=32)  # keys, values, chains, people or common words
  hops: int = at_least(1, 4, most=32)  # variables: names of a chain behind its first
  facts: int = at_least(1, 1, most=2)  # facts: 1 asks where somebody is, 2 where a thing is
  digits: int = above(0, 4)  # of each number
  filler: str = ""  # the corpus that hides them; empty: data.path


@dataclasses.dataclass(frozen=True)
class WarmConfig:
  """Warm memory: examples start from states that have read earlier text, without gradient.

  Every lane has a companion that reads `segments` more of earlier text at every step, until it has
  read a planned length, and starts anew. Whatever begins at the start of a chunk takes over the
  companion's state with the probability `share`. (With `data.carry_state` a long document's own
  state is warm already.)

  With a `growth` above 1 a companion fast-forwards: what a step adds to its state counts several
  times, so that the text, as counted, grows by this factor at every step.
  """

  share: float = at_least(0, 0.0, most=1)  # 0: off
  weight: float = above(0, 1.0)  # of a task's example that starts from there; of others 1
  start_step: int = at_least(0, 0)  # before it all start empty: short texts teach a memory sooner
  segments: int = above(0, 4)  # that a companion reads at every step
  min_tokens: int = above(0, 1024)  # planned lengths: log-uniform from here
  max_tokens: int = 65_536  # to here, as counted
  growth: float = at_least(1, 1.0)  # of the text as counted, at every step; 1: none


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, or Adafactor as the paper's; the gates are a group of their own."""

  name: str = choice("adamw", OPTIMIZERS)
  learning_rate: float = above(0, 1e-3)  # the peak, after the warm-up
  warmup_steps: int = at_least(0, 100)
  final_fraction: float = at_least(0, 0.1)  # the cosine ends at this share of the peak
  b1: float = at_least(0, 0.9)
  b2: float = at_least(0, 0.95)
  eps: float = above(0, 1e-8)
  weight_decay: float = at_least(0, 0.1)  # of matrices; norms and gates have none
  clip_norm: float = at_least(0, 1.0)  # of the whole gradient; 0 turns clipping off
  gate_learning_rate: float = above(0, 0.01)  # the gates' own peak, on the same schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how seeded, how often written down."""

  steps: int = above(0, 1000)
  start_from: str = ""  # a run whose newest parameters and vocabulary training begins with
  part: str = choice("all", PARTS)  # what is trained; gates are trained in every part
  rollout: tuple[int, ...] = ()  # N that training begins with, one after the other, growing
  rollout_steps: int = at_least(0, 0)  # of each of them; model.segment_length follows
  distill_weight: float = at_least(0, 0.0)  # of KL(original || model), the run of start_from
  seed: int = at_least(0, 0)
  accumulate: int = above(0, 1)  # microbatches per update; the lanes are divided among them
  z_loss: float = at_least(0, 0.0)  # weight of log(Z)^2
  loss_chunk: int = above(0, 1024)  # tokens of each lane whose logits exist at the same time
  log_every: int = above(0, 10)
  eval_every: int = at_least(0, 0)  # 0: only by eval.py
  eval_documents: int = above(0, 8)  # validation documents of an evaluation during training
  checkpoint_every: int = above(0, 500)  # and always at the end
  keep_checkpoints: int = above(0, 2)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What is written beside `metrics.jsonl`."""

  tensorboard: bool = True
  wandb: bool = False
  profile_start: int = at_least(0, 0)  # steps of this process after which the profiler starts
  profile_steps: int = at_least(0, 0)  # steps it records; 0 turns it off


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Whole documents or a task's examples, chunk after chunk, the state carried."""

  task: str = choice("", ("", *TASKS))  # one of task.name's; empty: what the run was trained on
  split: str = choice("test", (*SPLITS, ALL_SPLITS))  # a corpus of one document is read whole
  document: str = ""  # the one document of that name alone, of whichever split it is in
  lanes: int = above(0, 8)  # documents read side by side
  segments: int = above(0, 8)  # segments of a chunk
  max_documents: int = at_least(0, 0)  # the first so many of the split; 0: all
  max_tokens: int = at_least(0, 0)  # read no further into a document; 0: to its end
  input_tokens: int = at_least(0, 0)  # of a document, until the memory is emptied; 0: never
  knock_out: tuple[str, ...] = choices(("empty",), KNOCK_OUTS)  # ablations: evaluation/knock_out.py
  lengths: tuple[int, ...] = at_least(1, (1024, 4096))  # tokens of a task's examples
  depths: tuple[float, ...] = at_least(0, (0.0, 0.5, 1.0), most=1)  # of the key: 0 start, 1 end
  samples: int = above(0, 100)  # fresh examples of each length and depth
  summary_length: int = above(0, 1024)  # tokens of a summary that is written, at most
  temperature: float = at_least(0, 0.5)  # of its writing; 0 is greedy
  top_p: float = above(0, 0.95, most=1)  # of its writing


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; -1 in `data` takes those that the others leave."""

  data: int = -1  # lanes
  fsdp: int = at_least(1, 1)  # lanes too; parameters and moments lie divided, and are gathered
  seq: int = at_least(1, 1)  # the segments of a chunk; only memories cross it
  tensor: int = at_least(1, 1)  # heads, the feed-forward, the vocabulary
  dcn: int = at_least(1, 1)  # lanes, over slices or hosts that only a data-center network joins


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  task: TaskConfig = TaskConfig()
  needle: NeedleConfig = NeedleConfig()
  warm: WarmConfig = WarmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  log: LogConfig = LogConfig()
  evaluation: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()

  def sections(self) -> dict[str, Any]:
    """The sections as a person writes them, each a frozen dataclass.

    The fields of `model` are spread: its sizes, `family`, the section of its memory system,
    `adapters` and `run` stand beside each other.
    """
    m = self.model
    sizes = SizesConfig(**{f.name: getattr(m, f.name) for f in dataclasses.fields(SizesConfig)})
    of_model = {"model": sizes, "family": m.family, m.mixer: m.memory}
    of_model |= {"adapters": m.adapters, "run": m.run}
    others = (f.name for f in dataclasses.fields(self) if f.name != "model")
    return of_model | {name: getattr(self, name) for name in others}

  def with_fields(self, **sections: dict[str, Any]) -> "Config":
    """The same with some fields of some sections changed; nothing is checked.

    A section of a memory system that the model does not have is left out.
    """
    return from_sections(
      self.sections()
      | {
        name: dataclasses.replace(self.sections().get(name, SECTIONS[name]()), **fields)
        for name, fields in sections.items()
      }
    )

  def to_json(self) -> str:
    """The config as indented JSON, for a person and for `from_json`."""
    sections = {name: dataclasses.asdict(section) for name, section in self.sections().items()}
    return json.dumps({name: fields for name, fields in sections.items() if fields}, indent=2)


def from_sections(sections: dict[str, Any]) -> Config:
  """A config of whole sections, as `Config.sections` gives them; what is missing has defaults."""
  sizes = sections.get("model", SizesConfig())
  model = ModelConfig(
    **vars(sizes),
    family=sections.get("family", FamilyConfig()),
    memory=sections.get(sizes.mixer),
    adapters=sections.get("adapters", AdaptersConfig()),
    run=sections.get("run", RunConfig()),
  )
  others = (f.name for f in dataclasses.fields(Config) if f.name != "model")
  return Config(model=model, **{name: sections[name] for name in others if name in sections})


# The sections that a person writes, and their classes.
SECTIONS: dict[str, Any] = {
  "model": SizesConfig,
  "family": FamilyConfig,
  **{name: system for name, system in SYSTEMS.items() if dataclasses.fields(system)},
  "adapters": AdaptersConfig,
  "run": RunConfig,
  **{f.name: type(f.default) for f in dataclasses.fields(Config) if f.name != "model"},
}

# How a model is computed on a machine, and not what: these fields of `run` never travel with it.
HOW_TO_RUN = ("remat", "implementation", "attention")

# What a run may change when it goes on in the same workdir; everything else makes another run.
CHANGEABLE = {
  "evaluation": None,
  "mesh": None,
  "data": ("path", "prefetch"),  # a path may move; the store's own fingerprint is compared instead
  # a run that learns needles compares its task's fingerprint
  "needle": None,
  "train": tuple(
    f.name
    for f in dataclasses.fields(TrainConfig)
    if f.name not in ("seed", "z_loss", "part", "rollout", "rollout_steps", "distill_weight")
  ),
  "run": (*HOW_TO_RUN, "compilation_cache"),
  "log": None,
}
