"""The fields of an experiment, as frozen dataclasses: the meaning, default and bounds of each.

Letters are those of the glossary: B lanes, T = S*N tokens of a chunk, S segments of a chunk,
N tokens of a segment, D width, H query heads, K key/value heads, E head size, F feed-forward,
V vocabulary, L layers, R rank of adapters.
"""

import dataclasses
import json
from typing import Any, ClassVar

from infini_jax.config.bounds import InputError, Where, above, at_least, choice, choices
from infini_jax.config.model import (
  HOW_TO_RUN,
  AdaptersConfig,
  FamilyConfig,
  ModelConfig,
  RunConfig,
  SizesConfig,
)
from infini_jax.config.optimization import OptimizerConfig, WeightDecayConfig
from infini_jax.config.systems import SYSTEMS
from infini_jax.config.tasks import TASKS, TaskKind

TOO_LONG = ("refuse", "cut", "leave_out")
NUMBERS = ("single", "multikey", "multivalue", "multiquery", "variables")  # families with numbers
FAMILIES = (*NUMBERS, "facts", "common_words", "frequent_words")
KNOCK_OUTS = ("empty", "reads", "layers", "swap")
PARTS = ("all", "gates", "attention", "lora")
SPLITS = ("train", "validation", "test")
ALL_SPLITS = "all"  # all three splits; only for evaluations
GENERATED = "|".join(name for name, kind in TASKS.items() if kind.generated)
EXAMPLES = f"task.name={GENERATED}"  # tasks whose examples are generated (`Where`)
LEAST, MOST = 1e-15, 1e15  # bounds of a divisor of logits, so that the result is finite in float32


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Documents in lanes: a lane follows one document until it ends.

  The tokenizer `run` is the tokenizer of the run, or of `train.start_from` before training starts;
  `task` is the task's own vocabulary.
  """

  path: str = ""  # a prepared store, a corpus, or mix:STORE=WEIGHT,...: docs/data.md
  stages: tuple[str, ...] = ()  # of a mixture: STEP=WEIGHT:WEIGHT, other weights from a step on
  tokenizer: str = "bytes"  # or train:SIZE, sentencepiece:FILE, huggingface:FILE, run, task
  lanes: int = above(0, 8)  # B, over all hosts
  segments: int = above(0, 4)  # S; a training chunk holds T = S*N tokens of each lane
  carry_state: bool = True  # carry each lane's state from step to step, without gradient
  prefetch: int = above(0, 4)  # batches read ahead
  patience: int = at_least(0, 600)  # seconds until a read that hangs is tried again; 0: never


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What a model learns: documents of `data.path`, or generated examples, each with an answer.

  One chunk holds a whole example of a task, so the gradient flows from the answer to the first
  token; conversations and summaries may be longer (`data.carry_state`). The loss weight of an
  answer is 1 in total, whatever its length; in conversations it is 1 for each token.
  """

  where: ClassVar[Where] = {
    "task.name=passkey": "digits late repeat_weight",
    "task.name=recall": "pairs distinct_keys distinct_values span",
    EXAMPLES: "min_segments curriculum_steps",
    f"{EXAMPLES}|summarization": "context_weight",
    "task.text_lanes": "text_weight",
  }

  name: str = choice("text", tuple(TASKS))  # text, summarization, chat, passkey, recall or needle
  digits: int = above(0, 4)  # passkey: digits of the key
  late: float = at_least(0, 0.0, most=1)  # passkey: share of training keys near the end
  pairs: int = above(0, 32)  # recall: pairs of key and value in an example
  distinct_keys: int = above(0, 64)  # recall: different keys
  distinct_values: int = above(0, 64)  # recall: different values
  span: int = at_least(0, 0)  # recall: all pairs are in this many first tokens; 0: anywhere
  min_segments: int = above(0, 2)  # segments of the shortest example; the longest has data.segments
  curriculum_steps: int = at_least(0, 0)  # steps in which the longest grows from the shortest
  repeat_weight: float = at_least(0, 0.3)  # passkey: loss weight of the second copy of the key
  context_weight: float = at_least(0, 0.5)  # loss weight of the rest of an example, in total
  text_lanes: int = at_least(0, 0)  # lanes of a batch that read documents of data.path instead
  text_weight: float = above(0, 1.0)  # loss weight of the tokens of such a lane, in total

  @property
  def kind(self) -> TaskKind:
    """The facts of the task."""
    return TASKS[self.name]

  def check(self) -> None:
    """Raises InputError, with the remedy, if these fields contradict each other."""
    if self.pairs > self.distinct_keys:
      raise InputError(
        f"config.task.pairs={self.pairs} is more than config.task.distinct_keys="
        f"{self.distinct_keys}: each pair has a key of its own"
      )
    if 0 < self.span <= 2 * self.pairs:
      raise InputError(
        f"config.task.span={self.span}: config.task.pairs={self.pairs} pairs do not fit into so "
        f"few tokens; make it {2 * self.pairs + 1} or more, or 0"
      )


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
  """The task `needle`: the facts in a text, and the question. docs/needles.md."""

  where: ClassVar[Where] = {
    "task.name=needle": "*",
    f"needle.family={'|'.join(FAMILIES[1:])}": "needles",
    "needle.family=variables": "hops",
    "needle.family=facts": "facts",
    f"needle.family={'|'.join(NUMBERS)}": "digits",
    f"needle.family={'|'.join(NUMBERS)}|facts": "filler",
  }

  family: str = choice("single", FAMILIES)  # the kind of the facts and the question
  needles: int = at_least(1, 4, most=32)  # keys, values, chains, people or common words
  hops: int = at_least(1, 4, most=32)  # variables: names in a chain after the first
  facts: int = at_least(1, 1, most=2)  # facts: 1: where is a person? 2: where is a thing?
  digits: int = above(0, 4)  # digits of each number
  filler: str = ""  # the corpus of the text around them; empty: data.path


@dataclasses.dataclass(frozen=True)
class ChatConfig:
  """The task `chat`: how conversations become text, and which of them fit. docs/chat.md."""

  where: ClassVar[Where] = {"task.name=chat": "*"}

  template: str = "own"  # own, own:NAME, plain, file:FILE, or Jinja text
  max_tokens: int = at_least(0, 0)  # of a conversation; 0: no limit, or a chunk without carry_state
  too_long: str = choice("refuse", TOO_LONG)  # cut: the middle of its longest question


@dataclasses.dataclass(frozen=True)
class WarmConfig:
  """Warm memory: an example starts from a state that holds earlier text, read without gradient.

  Every lane has a companion, a second state. It reads `segments` segments of earlier text at every
  step. After a planned length it starts again, empty. A document or example that begins at the
  start of a chunk takes over the companion's state with the probability `share`. (With
  `data.carry_state` the state of a long document is warm already.)

  With a `growth` above 1 a companion fast-forwards: the text of one step counts several times, so
  that the counted text grows by this factor at every step. With `filler` the filler of an example
  that starts warm counts several times too, so that the gradient shows what it dilutes.
  """

  where: ClassVar[Where] = {"warm.share": "*", EXAMPLES: "weight"}

  share: float = at_least(0, 0.0, most=1)  # 0: off
  weight: float = above(0, 1.0)  # loss weight of a task's example that starts warm; of others 1
  start_step: int = at_least(0, 0)  # before this step all examples start empty
  segments: int = above(0, 4)  # segments that a companion reads at every step
  min_tokens: int = above(0, 1024)  # planned lengths are log-uniform, from this
  max_tokens: int = above(0, 65_536)  # to this, in counted tokens
  growth: float = at_least(1, 1.0)  # factor of the counted text at every step; 1: none
  filler: float = at_least(0, 0.0)  # a warm example's filler counts this share of what was read

  def check(self) -> None:
    """Raises InputError if the bounds of the lengths are swapped."""
    if self.min_tokens > self.max_tokens:
      raise InputError(
        f"config.warm.min_tokens={self.min_tokens} is more than "
        f"config.warm.max_tokens={self.max_tokens}: swap them"
      )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The length, start, seed and intervals of training."""

  where: ClassVar[Where] = {"train.rollout": "rollout_steps", "train.eval_every": "eval_documents"}

  steps: int = above(0, 1000)
  start_from: str = ""  # a run; training starts from its newest parameters and vocabulary
  part: str = choice("all", PARTS)  # the trained parameters; gates are always trained
  rollout: tuple[int, ...] = ()  # values of N before model.segment_length, growing
  rollout_steps: int = at_least(0, 0)  # steps with each value of rollout
  distill_weight: float = at_least(0, 0.0)  # of KL(original || model); original: start_from
  seed: int = at_least(0, 0)
  accumulate: int = above(0, 1)  # microbatches per update; the lanes are divided among them
  z_loss: float = at_least(0, 0.0)  # weight of the squared logarithm of the softmax sum
  loss_chunk: int = above(0, 1024)  # tokens of each lane whose logits are computed at a time
  log_every: int = above(0, 10)
  eval_every: int = at_least(0, 0)  # 0: never during training
  eval_documents: int = above(0, 8)  # documents or examples of a validation during training
  checkpoint_every: int = above(0, 500)  # and always at the end
  keep_checkpoints: int = above(0, 2)


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """Bad steps: loss, gradient or memory is not finite, or the gradient is far too large."""

  where: ClassVar[Where] = {"guard.spike": "horizon"}

  in_a_row: int = at_least(0, 3)  # bad steps until training goes back; 0: the first one stops it
  returns: int = at_least(0, 3)  # times that training goes back to a checkpoint; then it stops
  spike: float = at_least(0, 0.0)  # a gradient norm above this multiple of its mean is bad; 0: off
  horizon: int = above(0, 100)  # steps of the running mean of the gradient norm
  hang: int = at_least(0, 3600)  # seconds without progress after which the process ends; 0: never


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Logs in addition to `metrics.jsonl`."""

  where: ClassVar[Where] = {"log.profile_steps": "profile_start"}

  tensorboard: bool = True
  wandb: bool = False
  profile_start: int = at_least(0, 0)  # the profiler starts after this many steps of the process
  profile_steps: int = at_least(0, 0)  # steps that the profiler records; 0: off


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation: whole documents or a task's examples, chunk after chunk, with carried state."""

  where: ClassVar[Where] = {
    "task.name=text": "input_tokens",
    "task.name=text|summarization": "document max_tokens",
    EXAMPLES: "lengths samples",
    "task.name=passkey|needle": "depths",
    "task.name=summarization|chat|ruler|babilong": "summary_length",
    "task.name=summarization|chat": "temperature top_p",
    "evaluation.temperature": "top_p",
    "memory.remembers": "knock_out",
  }

  task: str = choice("", ("", *TASKS))  # a value of task.name; empty: the task of the run
  split: str = choice("test", (*SPLITS, ALL_SPLITS))  # a corpus of one document is read as a whole
  document: str = ""  # read only the document of this name, in any split
  lanes: int = above(0, 8)  # documents read in parallel
  segments: int = above(0, 8)  # segments of a chunk
  max_documents: int = at_least(0, 0)  # read this many documents of the split; 0: all
  max_tokens: int = at_least(0, 0)  # read at most this many tokens of a document; 0: all
  input_tokens: int = at_least(0, 0)  # tokens until the memory is emptied; 0: never
  knock_out: tuple[str, ...] = choices(("empty",), KNOCK_OUTS)  # ablations: evaluation/knock_out.py
  lengths: tuple[int, ...] = at_least(1, (1024, 4096))  # tokens of a task's examples
  depths: tuple[float, ...] = at_least(0, (0.0, 0.5, 1.0), most=1)  # of the key: 0 start, 1 end
  samples: int = above(0, 100)  # new examples of each length and depth
  summary_length: int = above(0, 1024)  # the most tokens of a generated summary or answer
  temperature: float = at_least(
    LEAST, 0.5, MOST, also=0, says=f"must be 0 (greedy), or from {LEAST:g} to {MOST:g}"
  )  # of generated summaries and answers; 0: greedy
  top_p: float = above(0, 0.95, most=1)  # of generated summaries and answers

  def check(self) -> None:
    """Raises InputError if there is nothing to evaluate."""
    for name, some in (("lengths", self.lengths), ("depths", self.depths)):
      if not some:
        raise InputError(f"config.evaluation.{name}=(): nothing to evaluate; give one or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; `data` -1: all devices that the other axes do not use."""

  data: int = at_least(1, -1, also=-1, says="must be at least 1, or -1 for the rest")  # lanes
  fsdp: int = at_least(1, 1)  # lanes too; parameters and moments are divided, and gathered for use
  seq: int = at_least(1, 1)  # the segments of a chunk; devices exchange only memories
  tensor: int = at_least(1, 1)  # heads, the feed-forward, the vocabulary
  dcn: int = at_least(1, 1)  # lanes, over slices or hosts that a data-center network connects


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  task: TaskConfig = TaskConfig()
  needle: NeedleConfig = NeedleConfig()
  chat: ChatConfig = ChatConfig()
  warm: WarmConfig = WarmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  weight_decay: WeightDecayConfig = WeightDecayConfig()
  train: TrainConfig = TrainConfig()
  guard: GuardConfig = GuardConfig()
  log: LogConfig = LogConfig()
  evaluation: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()

  def sections(self) -> dict[str, Any]:
    """The sections as a user writes them, each a frozen dataclass.

    `model` consists of several sections: its sizes (`model`), `family`, the section of
    its memory system, `adapters` and `run`.
    """
    m = self.model
    sizes = SizesConfig(**{f.name: getattr(m, f.name) for f in dataclasses.fields(SizesConfig)})
    of_model = {"model": sizes, "family": m.family}
    of_model |= {name: own.memory for name, own in m.by_system.items()}
    of_model |= {"adapters": m.adapters, "run": m.run}
    others = (f.name for f in dataclasses.fields(self) if f.name != "model")
    return of_model | {name: getattr(self, name) for name in others}

  def with_fields(self, **sections: dict[str, Any]) -> "Config":
    """A copy with some fields of some sections changed; nothing is checked.

    A section of a memory system that the model does not have is ignored.
    """
    return from_sections(
      self.sections()
      | {
        name: dataclasses.replace(self.sections().get(name, SECTIONS[name]()), **fields)
        for name, fields in sections.items()
      }
    )

  def to_json(self) -> str:
    """The config as indented JSON, which `from_json` reads."""
    sections = {name: dataclasses.asdict(section) for name, section in self.sections().items()}
    return json.dumps({name: fields for name, fields in sections.items() if fields}, indent=2)


def from_sections(sections: dict[str, Any]) -> Config:
  """A config of sections, as `Config.sections` gives them; missing sections have defaults."""
  sizes = sections.get("model", SizesConfig())
  model = ModelConfig(
    **vars(sizes),
    family=sections.get("family", FamilyConfig()),
    memory=tuple(sections.get(name) for name in sizes.pattern or (sizes.mixer,)),
    adapters=sections.get("adapters", AdaptersConfig()),
    run=sections.get("run", RunConfig()),
  )
  others = (f.name for f in dataclasses.fields(Config) if f.name != "model")
  return Config(model=model, **{name: sections[name] for name in others if name in sections})


# The sections that a user writes, and their classes.
SECTIONS: dict[str, Any] = {
  "model": SizesConfig,
  "family": FamilyConfig,
  **{name: system for name, system in SYSTEMS.items() if dataclasses.fields(system)},
  "adapters": AdaptersConfig,
  "run": RunConfig,
  **{f.name: type(f.default) for f in dataclasses.fields(Config) if f.name != "model"},
}

# Fields that may change when a run continues in its workdir; any other change is another run.
CHANGEABLE = {
  "evaluation": None,
  "mesh": None,
  # the fingerprint of the store is compared, not its path
  "data": ("path", "prefetch", "patience"),
  # a run that learns needles or conversations compares the fingerprint of its task
  "needle": None,
  "chat": None,
  "train": tuple(
    f.name
    for f in dataclasses.fields(TrainConfig)
    if f.name not in ("seed", "z_loss", "part", "rollout", "rollout_steps", "distill_weight")
  ),
  "run": HOW_TO_RUN,
  "log": None,
  "guard": ("in_a_row", "returns", "hang"),
}
