"""The schema of an experiment: frozen dataclasses, and every error that two fields can make.

A config file is Python: it takes `base_config()`, a locked `ml_collections.ConfigDict` that holds
every field below with its default, edits it, and returns it. `resolve` turns that into the frozen
`Config` that the rest of the package reads. Nothing here touches a device or imports the package.

Letters are those of the glossary: B lanes, T = S*N tokens of a chunk, S segments of a chunk,
N tokens of a segment, D width, H query heads, K key/value heads, E head size, F feed-forward,
V vocabulary, L layers.
"""

import dataclasses
import difflib
import json
from typing import Any

import ml_collections

MIXERS = ("infini", "local", "full")
RULES = ("linear", "delta")
GATES = ("sigmoid", "hard_sigmoid")
TASKS = ("text", "passkey", "recall")
KNOCK_OUTS = ("empty", "reads", "layers")
KERNELS = ("auto", "reference", "xla", "splash", "cudnn")
IMPLEMENTATIONS = ("auto", "scan", "parallel")
ACTIVATIONS = ("swiglu", "gelu")
REMAT_POLICIES = ("none", "full", "dots", "offload")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "adafactor")
SPLITS = ("train", "validation", "test")


class InputError(ValueError):
  """A wrong input. Its text is one line: the thing, the value, the remedy. Exit status 2."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder like Llama's, whose attention layers read and write a memory."""

  mixer: str = "infini"  # infini, local (memory off) or full (causal attention over everything)
  layers: int = 4  # L
  width: int = 256  # D
  heads: int = 4  # H
  kv_heads: int = 4  # K; H is a multiple of K
  head_dim: int = 64  # E = U
  ffn: int = 1024  # F
  vocab_size: int = 257  # V; at least the tokenizer's size
  segment_length: int = 256  # N
  rule: str = "linear"  # how the memory is written: linear or delta
  gate: str = "sigmoid"  # of beta: sigmoid, or hard_sigmoid, which can shut and open entirely
  gate_init: float = 0.0  # beta at the start: 0 from scratch, about -5 to adapt a trained model
  scale_first_segment: bool = False  # True: the paper's literal (1 - gate) while memory is empty
  normalize_keys: bool = False  # each stored key weighs 1 in z (Schlag et al., 2021)
  z_correction: bool = False  # z grows by the new part of a key alone (ARMT)
  decay: float = 1.0  # what a compression leaves of the memory; below 1 it forgets
  readout_norm: bool = False  # RMSNorm without scale over each head's read-out
  activation: str = "swiglu"  # swiglu or gelu
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied_embeddings: bool = True
  qk_norm: bool = False  # RMSNorm over each query's and key's head
  remat: str = "full"  # recomputed for the gradient: none, dots, full, or offload (host)
  implementation: str = "auto"  # how the segments are run: parallel, scan, or auto
  attention: str = "auto"  # kernel inside segments: reference, xla, splash (TPU), cudnn, or auto
  compute_dtype: str = "float32"
  param_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Documents in lanes: a lane follows one document until it ends."""

  path: str = ""  # a folder of text, a prepared store, or "python-stdlib"
  tokenizer: str = "bytes"  # bytes, train:SIZE, sentencepiece:FILE or huggingface:FILE
  lanes: int = 8  # B, over all hosts
  segments: int = 4  # S; a training chunk holds T = S*N tokens of each lane
  carry_state: bool = True  # carry each lane's state from step to step, without gradient through it
  prefetch: int = 4  # batches read ahead


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is learned: documents of `data.path`, or examples made on the spot, each with an answer.

  A task's example is whole in one chunk: the gradient goes from the answer back to its first token.
  The loss weighs an answer 1, whatever its length.
  """

  name: str = "text"  # text, passkey or recall
  digits: int = 4  # passkey: of the key
  pairs: int = 32  # recall: keys with their values in an example
  distinct_keys: int = 64  # recall: different keys
  distinct_values: int = 64  # recall: different values
  min_segments: int = 2  # of the shortest example; the longest has data.segments
  curriculum_steps: int = 0  # in which the longest grows from the shortest
  repeat_weight: float = 0.3  # passkey: loss weight of the key's second copy
  context_weight: float = 0.5  # loss weight of all the rest of an example


@dataclasses.dataclass(frozen=True)
class WarmConfig:
  """Warm memory: examples start from states that have read earlier text, without gradient.

  Every lane has a companion that reads `segments` more of earlier text at every step, until it has
  read a planned length, and starts anew. Whatever begins at the start of a chunk takes over the
  companion's state with the probability `share`. (With `data.carry_state` a long document's own
  state is warm already.)
  """

  share: float = 0.0  # 0: off
  start_step: int = 0  # before, all start empty: a memory learns sooner from short texts
  segments: int = 4  # that a companion reads at every step
  min_tokens: int = 1024  # planned lengths: log-uniform from here
  max_tokens: int = 65_536  # to here


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, or Adafactor as the paper's; the gates are a group of their own."""

  name: str = "adamw"
  learning_rate: float = 1e-3  # the peak, after the warm-up
  warmup_steps: int = 100
  final_fraction: float = 0.1  # the cosine ends at this share of the peak
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1  # of matrices; norms and gates have none
  clip_norm: float = 1.0  # of the whole gradient; 0 turns clipping off
  gate_learning_rate: float = 0.01  # the gates' own peak, on the same schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how seeded, how often written down."""

  steps: int = 1000
  seed: int = 0
  accumulate: int = 1  # microbatches per update; the lanes are divided among them
  z_loss: float = 0.0  # weight of log(Z)^2
  loss_chunk: int = 1024  # tokens of each lane whose logits exist at the same time
  log_every: int = 10
  eval_every: int = 0  # 0: only by eval.py
  eval_documents: int = 8  # validation documents of an evaluation during training
  checkpoint_every: int = 500  # and always at the end
  compilation_cache: str = ""  # a folder, to compile a program once for all runs; empty: none
  keep_checkpoints: int = 2
  tensorboard: bool = True
  wandb: bool = False
  profile_start: int = 0  # step at which the profiler starts
  profile_steps: int = 0  # steps it records; 0 turns it off


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Whole documents or a task's examples, chunk after chunk, the state carried."""

  task: str = ""  # text, passkey or recall; empty: what the run was trained on
  split: str = "test"
  lanes: int = 8  # documents read side by side
  segments: int = 8  # segments of a chunk
  max_documents: int = 0  # the first so many of the split; 0: all
  max_tokens: int = 0  # read no further into a document; 0: to its end
  knock_out: tuple[str, ...] = ("empty",)  # also: reads, layers (one after the other)
  lengths: tuple[int, ...] = (1024, 4096)  # tokens of a task's examples
  depths: tuple[float, ...] = (0.0, 0.5, 1.0)  # where the pass key stands: 0 start, 1 end
  samples: int = 100  # fresh examples of each length and depth


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; -1 in `data` takes those that the others leave."""

  data: int = -1  # lanes
  fsdp: int = 1  # lanes too; parameters and their moments lie divided, and are gathered for use
  seq: int = 1  # the segments of a chunk; only memories cross it
  tensor: int = 1  # heads, the feed-forward, the vocabulary
  dcn: int = 1  # lanes, over slices or hosts that only a data-center network joins


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  task: TaskConfig = TaskConfig()
  warm: WarmConfig = WarmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  evaluation: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()

  def to_json(self) -> str:
    """The config as indented JSON, for a person and for `from_json`."""
    return json.dumps(dataclasses.asdict(self), indent=2)


SECTIONS: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(Config)}

# What a run may change when it goes on in the same workdir; everything else makes another run.
CHANGEABLE = {
  "evaluation": None,
  "mesh": None,
  "data": ("path", "prefetch"),  # a path may move; the store's own fingerprint is compared instead
  "train": tuple(
    f.name for f in dataclasses.fields(TrainConfig) if f.name not in ("seed", "z_loss")
  ),
  "model": ("remat", "implementation", "attention"),
}


def base_config() -> ml_collections.ConfigDict:
  """Every field with its default, locked: a config file edits what it changes."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  return config.lock()


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
  """Freezes and checks a config.

  Raises:
    InputError: an unknown field, a value of the wrong type, or fields that contradict each other.
  """
  values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
  sections: dict[str, Any] = {}
  for name, section in values.items():
    check_name(name)
    sections[name] = _section(name, SECTIONS[name], section)
  resolved = Config(**sections)
  check(resolved)
  return resolved


def from_json(text: str) -> Config:
  """Reads back what `Config.to_json` wrote."""
  return resolve(json.loads(text))


def check(config: Config) -> None:
  """Raises InputError, with the remedy, for the first wrong field of a config."""
  m, d, o, t, e = config.model, config.data, config.optimizer, config.train, config.evaluation
  for name, value, choices in (
    ("model.mixer", m.mixer, MIXERS),
    ("model.rule", m.rule, RULES),
    ("model.gate", m.gate, GATES),
    ("model.activation", m.activation, ACTIVATIONS),
    ("model.remat", m.remat, REMAT_POLICIES),
    ("model.implementation", m.implementation, IMPLEMENTATIONS),
    ("model.attention", m.attention, KERNELS),
    ("model.compute_dtype", m.compute_dtype, DTYPES),
    ("model.param_dtype", m.param_dtype, DTYPES),
    ("optimizer.name", o.name, OPTIMIZERS),
    ("task.name", config.task.name, TASKS),
    ("evaluation.task", e.task or config.task.name, TASKS),
    *(("evaluation.knock_out", name, KNOCK_OUTS) for name in e.knock_out),
    ("evaluation.split", e.split, SPLITS),
  ):
    if value not in choices:
      raise InputError(f"config.{name}={value!r}: choose one of {', '.join(choices)}")
  positive = {
    "model": "layers width heads kv_heads head_dim ffn vocab_size segment_length"
    " rope_theta norm_eps",
    "data": "lanes segments prefetch",
    "optimizer": "learning_rate gate_learning_rate eps",
    "train": "steps accumulate loss_chunk log_every eval_documents checkpoint_every"
    " keep_checkpoints",
    "evaluation": "lanes segments samples",
    "task": "digits pairs distinct_keys distinct_values min_segments",
    "warm": "segments min_tokens",
  }
  not_negative = {
    "optimizer": "warmup_steps final_fraction weight_decay clip_norm b1 b2",
    "train": "seed z_loss eval_every profile_start profile_steps",
    "evaluation": "max_documents max_tokens",
    "task": "curriculum_steps repeat_weight context_weight",
    "warm": "share start_step",
  }
  for bound, groups in ((0, positive), (None, not_negative)):
    for section, names in groups.items():
      for name in names.split():
        value = getattr(getattr(config, section), name)
        if value < 0 or value == bound:
          what = "more than 0" if bound == 0 else "0 or more"
          raise InputError(f"config.{section}.{name}={value}: must be {what}")
  if m.heads % m.kv_heads:
    raise InputError(
      f"config.model.heads={m.heads} is not a multiple of config.model.kv_heads={m.kv_heads}: "
      f"each key/value head serves the same number of query heads"
    )
  if m.head_dim % 2:
    raise InputError(
      f"config.model.head_dim={m.head_dim}: rotary positions turn pairs, choose an even size"
    )
  if d.lanes % t.accumulate:
    raise InputError(
      f"config.data.lanes={d.lanes} is not a multiple of config.train.accumulate={t.accumulate}: "
      f"the lanes are divided among the microbatches"
    )
  if d.carry_state and m.mixer == "full":
    raise InputError(
      "config.data.carry_state=True with config.model.mixer='full': its state grows without end; "
      "set config.data.carry_state=False"
    )
  if m.gate == "hard_sigmoid" and abs(m.gate_init) >= 3:
    raise InputError(
      f"config.model.gate_init={m.gate_init} with config.model.gate='hard_sigmoid': it has no "
      f"gradient from 3 on; set gate_init to -2.9 to adapt a trained model"
    )
  if not 0 < m.decay <= 1:
    raise InputError(f"config.model.decay={m.decay}: must be above 0, and at most 1 (no decay)")
  if m.z_correction and m.rule != "delta":
    raise InputError(
      "config.model.z_correction=True with config.model.rule='linear': its read-outs would grow "
      "without end, for z stands still; set config.model.rule='delta'"
    )
  _check_task(config)
  for name in ("dcn", "fsdp", "seq", "tensor"):
    if (size := getattr(config.mesh, name)) < 1:
      raise InputError(f"config.mesh.{name}={size}: must be at least 1")
  if config.mesh.data < 1 and config.mesh.data != -1:
    raise InputError(f"config.mesh.data={config.mesh.data}: must be at least 1, or -1 for the rest")
  if config.mesh.seq > 1:
    _check_sequence_parallel(config)
  if t.wandb:
    _require("wandb", "config.train.wandb=True", "pip install 'infini-jax[wandb]'")


def _check_sequence_parallel(config: Config) -> None:
  m, infini = config.model, config.model.mixer == "infini"
  for wrong, setting, why in (
    (m.mixer == "full", "mixer='full'", "every token sees all before it; set config.mesh.seq=1"),
    (
      infini and m.implementation == "scan",
      "implementation='scan'",
      "segments that wait for each other; set config.model.implementation='parallel'",
    ),
    (infini and m.z_correction, "z_correction=True", "each token needs z; set config.mesh.seq=1"),
  ):
    if wrong:
      raise InputError(f"config.mesh.seq={config.mesh.seq} with config.model.{setting}: {why}")


def _check_task(config: Config) -> None:
  d, task, warm, e = config.data, config.task, config.warm, config.evaluation
  if task.name != "text":
    if d.carry_state:
      raise InputError(
        f"config.data.carry_state=True with config.task.name={task.name!r}: its examples do not go "
        f"on from step to step; set config.data.carry_state=False (and see config.warm)"
      )
    if task.min_segments > d.segments:
      raise InputError(
        f"config.task.min_segments={task.min_segments} is more than config.data.segments="
        f"{d.segments}: an example is whole in one chunk"
      )
  elif d.tokenizer == "task":
    raise InputError("config.data.tokenizer='task' needs config.task.name='passkey' or 'recall'")
  if warm.share > 1:
    raise InputError(f"config.warm.share={warm.share}: a probability, at most 1")
  if warm.share and config.model.mixer == "full":
    raise InputError("config.warm.share with config.model.mixer='full': its state grows; set it 0")
  if warm.min_tokens > warm.max_tokens:
    raise InputError(
      f"config.warm.min_tokens={warm.min_tokens} is more than "
      f"config.warm.max_tokens={warm.max_tokens}: swap them"
    )
  for name, some in (("lengths", e.lengths), ("depths", e.depths)):
    if not some:
      raise InputError(f"config.evaluation.{name}=(): nothing to evaluate; give one or more")
  for depth in e.depths:
    if not 0 <= depth <= 1:
      raise InputError(f"config.evaluation.depths: {depth} is outside 0 (start) to 1 (end)")
  for length in e.lengths:
    if length < 1:
      raise InputError(
        f"config.evaluation.lengths: {length} is no number of tokens: give 1 or more"
      )
  if task.pairs > task.distinct_keys:
    raise InputError(
      f"config.task.pairs={task.pairs} is more than config.task.distinct_keys="
      f"{task.distinct_keys}: each pair has a key of its own"
    )


def check_name(section: str, field: str | None = None) -> None:
  """Raises InputError, with the nearest name, if there is no such section or field."""
  if section not in SECTIONS:
    raise InputError(f"config.{section}: no such section{_did_you_mean(section, SECTIONS)}")
  fields = [f.name for f in dataclasses.fields(SECTIONS[section])]
  if field is not None and field not in fields:
    raise InputError(f"config.{section}.{field}: no such field{_did_you_mean(field, fields)}")


def difference(old: Config, new: Config) -> str | None:
  """The first field in which `new` is another experiment than `old`: 'section.field: a -> b'."""
  for section in SECTIONS:
    free = CHANGEABLE.get(section, ())
    if free is None:
      continue
    for field in dataclasses.fields(getattr(old, section)):
      before = getattr(getattr(old, section), field.name)
      after = getattr(getattr(new, section), field.name)
      if field.name not in free and before != after:
        return f"config.{section}.{field.name}: {before!r} there, {after!r} here"
  return None


def _section(section: str, schema: type, values: Any) -> Any:
  if not isinstance(values, dict):
    raise InputError(f"config.{section}={values!r}: a section of fields is expected here")
  fields = {field.name: field for field in dataclasses.fields(schema)}
  checked = {}
  for name, value in values.items():
    check_name(section, name)
    want = type(fields[name].default)
    if want is float and type(value) is int:
      value = float(value)
    if want is tuple:
      value = _tuple(f"{section}.{name}", fields[name].default, value)
    elif type(value) is not want:
      raise InputError(f"config.{section}.{name}={value!r}: expected {want.__name__}")
    checked[name] = value
  return schema(**checked)


def _tuple(name: str, default: Any, values: Any) -> tuple:
  """Several values of the default's type; a list, as JSON writes it, is taken too."""
  want = type(default[0])
  values = tuple(values) if isinstance(values, list | tuple) else (values,)
  if want is float:
    values = tuple(float(v) if type(v) is int else v for v in values)
  if any(type(v) is not want for v in values):
    raise InputError(f"config.{name}={values!r}: expected several {want.__name__}")
  return values


def _did_you_mean(name: str, names: Any) -> str:
  close = difflib.get_close_matches(name, list(names), n=1)
  return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"


def _require(module: str, setting: str, remedy: str) -> None:
  import importlib.util

  if importlib.util.find_spec(module) is None:
    raise InputError(f"{setting} needs the package {module!r}: {remedy}")
