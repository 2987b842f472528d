"""The fields of an experiment, as frozen dataclasses: what each means, and its default.

Letters are those of the glossary: B lanes, T = S*N tokens of a chunk, S segments of a chunk,
N tokens of a segment, D width, H query heads, K key/value heads, E head size, F feed-forward,
V vocabulary, L layers, R rank of adapters.
"""

import dataclasses
import json
from typing import Any

MIXERS = (
  "infini",
  "local",
  "full",
  "transformer_xl",
  "compressive",
  "memorizing",
  "rmt",
  "autocompressor",
)
COMPRESSIONS = ("conv", "mean")
RULES = ("linear", "delta")
GATES = ("sigmoid", "hard_sigmoid")
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


class InputError(ValueError):
  """A wrong input. Its text is one line: the thing, the value, the remedy. Exit status 2."""

  def __init__(self, text: str):
    # A name may hold new lines, or what a terminal obeys.
    shown = (c if c.isprintable() else repr(c)[1:-1] for c in text)
    super().__init__("".join(shown))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder like Llama's, whose attention layers read and write a memory."""

  mixer: str = "infini"  # the memory system: docs/mixers.md
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
  write_gate: bool = False  # a learned share of each token is written: hard_sigmoid(x w + b)
  gate_init: float = 0.0  # beta at the start: 0 from scratch, about -5 to adapt a trained model
  scale_first_segment: bool = False  # True: the paper's literal (1 - gate) while memory is empty
  normalize_keys: bool = False  # each stored key weighs 1 in z (Schlag et al., 2021)
  z_correction: bool = False  # z grows by the new part of a key alone (ARMT)
  decay: float = 1.0  # what a compression leaves of the memory; below 1 it forgets
  readout_norm: bool = False  # RMSNorm without scale over each head's read-out
  summary_tokens: int = 50  # rmt, autocompressor: embeddings that a segment is summed up in
  summary_steps: int = 4  # autocompressor: summaries of so many segments are kept
  segment_jitter: float = 1 / 3  # autocompressor: in training a segment has (1 +- it) N tokens
  compression: str = "conv"  # compressive: how hidden states are compressed: conv or mean
  compression_rate: int = 4  # of them, how many become one
  compressed_memory: int = 512  # compressed hidden states a lane and layer
  knn_layers: tuple[int, ...] = (9,)  # memorizing: the layers with a store, from 1
  knn_memory: int = 65_536  # keys a lane and head that each of them stores
  knn_top: int = 32  # of them, how many a query attends to
  activation: str = "swiglu"  # swiglu, geglu or gelu
  rope_theta: float = 10_000.0
  rope_scaling: tuple[float, ...] = ()  # (factor,); Llama 3's and YaRN's: see ops/rotary.py
  norm_eps: float = 1e-5
  tied_embeddings: bool = True
  qk_norm: bool = False  # RMSNorm over each query's and key's head
  attention_bias: bool = False  # of queries, keys and values (Qwen 2)
  norm_plus_one: bool = False  # norms scale by 1 + their parameter (Gemma)
  post_norms: bool = False  # norms behind attention and feed-forward too (Gemma)
  embed_scale: float = 1.0  # embeddings are multiplied by it (Gemma: sqrt(D))
  query_scale: float = 0.0  # scores are multiplied by it; 0: 1/sqrt(E)
  attention_softcap: float = 0.0  # scores s become cap * tanh(s / cap) (Gemma 2); 0: off
  logit_softcap: float = 0.0  # the same of logits
  window: int = 0  # tokens that a query of a windowed layer sees, itself included; 0: all
  global_every: int = 0  # every such layer sees all; 0: every layer has the window
  global_nope: bool = False  # those layers turn nothing by its position (SmolLM3)
  window_theta: float = 0.0  # of windowed layers, unscaled (Gemma 3); 0: rope_theta, as the others
  lora_rank: int = 0  # R, of adapters beside the attention's projections; 0: none
  lora_alpha: float = 16.0  # what an adapter adds is scaled by lora_alpha / lora_rank
  remat: str = "full"  # recomputed for the gradient: none, dots, full, or offload (host)
  implementation: str = "auto"  # how the segments are run: parallel, scan, or auto
  attention: str = "auto"  # kernel inside segments: reference, xla, splash (TPU), cudnn, or auto
  compute_dtype: str = "float32"
  param_dtype: str = "float32"  # in which parameters are kept; bfloat16: docs/scale.md

  @property
  def gated(self) -> bool:
    """Whether the feed-forward has a gate: a third matrix."""
    return self.activation != "gelu"

  @property
  def prefix_length(self) -> int:
    """A, the summaries in front of a segment (rmt, autocompressor)."""
    return self.summary_tokens * (self.summary_steps if self.mixer == "autocompressor" else 1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Documents in lanes: a lane follows one document until it ends.

  The tokenizer `run` is that of the run, at first of `train.start_from`; `task` is the task's own.
  """

  path: str = ""  # a prepared store, a corpus, or mix:STORE=WEIGHT,...: docs/data.md
  tokenizer: str = "bytes"  # or train:SIZE, sentencepiece:FILE, huggingface:FILE, run, task
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

  name: str = "text"  # text, summarization, passkey, recall or needle
  digits: int = 4  # passkey, needle: of the key, and of each number
  late: float = 0.0  # passkey: share of training's keys that stand near the end
  pairs: int = 32  # recall: keys with their values in an example
  distinct_keys: int = 64  # recall: different keys
  distinct_values: int = 64  # recall: different values
  span: int = 0  # recall: tokens at the beginning in which all pairs stand; 0: anywhere
  min_segments: int = 2  # of the shortest example; the longest has data.segments
  curriculum_steps: int = 0  # in which the longest grows from the shortest
  repeat_weight: float = 0.3  # passkey: loss weight of the key's second copy
  context_weight: float = 0.5  # loss weight of all the rest of an example
  # What follows is of needles: docs/needles.md.
  family: str = "single"  # what hides in a text, and what is asked
  needles: int = 4  # keys, values, chains, people or common words
  hops: int = 4  # variables: names of a chain behind its first
  facts: int = 1  # facts: 1 asks where somebody is, 2 where a thing is
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

  share: float = 0.0  # 0: off
  weight: float = 1.0  # of a task's example that goes on from there, where one that starts has 1
  start_step: int = 0  # before, all start empty: a memory learns sooner from short texts
  segments: int = 4  # that a companion reads at every step
  min_tokens: int = 1024  # planned lengths: log-uniform from here
  max_tokens: int = 65_536  # to here, as counted
  growth: float = 1.0  # of the text as counted, at every step; 1: all that counts is read


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
  start_from: str = ""  # a run whose newest parameters and vocabulary training begins with
  part: str = "all"  # what is trained: all, gates, attention (gates too), lora (gates too)
  rollout: tuple[int, ...] = ()  # N that training begins with, one after the other, growing
  rollout_steps: int = 0  # of each of them; model.segment_length follows
  distill_weight: float = 0.0  # of KL(original || model): start_from's parameters, full attention
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
  profile_start: int = 0  # steps of this process after which the profiler starts
  profile_steps: int = 0  # steps it records; 0 turns it off


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Whole documents or a task's examples, chunk after chunk, the state carried."""

  task: str = ""  # one of task.name's; empty: what the run was trained on
  split: str = "test"  # or all; a corpus of one document is read whole
  document: str = ""  # the one document of that name alone, of whichever split it is in
  lanes: int = 8  # documents read side by side
  segments: int = 8  # segments of a chunk
  max_documents: int = 0  # the first so many of the split; 0: all
  max_tokens: int = 0  # read no further into a document; 0: to its end
  input_tokens: int = 0  # empty the memory after every so many tokens of a document; 0: never
  knock_out: tuple[str, ...] = ("empty",)  # also: reads, layers (one by one), swap
  lengths: tuple[int, ...] = (1024, 4096)  # tokens of a task's examples
  depths: tuple[float, ...] = (0.0, 0.5, 1.0)  # where the key or needle stands: 0 start, 1 end
  samples: int = 100  # fresh examples of each length and depth
  summary_length: int = 1024  # tokens of a summary that is written, at most
  temperature: float = 0.5  # of its writing; 0 is greedy
  top_p: float = 0.95  # of its writing


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


SECTIONS: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(Config)}

# How a model is computed on a machine, and not what: these fields never travel with it.
HOW_TO_RUN = ("remat", "implementation", "attention")

# What a run may change when it goes on in the same workdir; everything else makes another run.
CHANGEABLE = {
  "evaluation": None,
  "mesh": None,
  "data": ("path", "prefetch"),  # a path may move; the store's own fingerprint is compared instead
  # a run that learns needles compares its task's fingerprint
  "task": ("family", "needles", "hops", "facts", "filler"),
  "train": tuple(
    f.name
    for f in dataclasses.fields(TrainConfig)
    if f.name not in ("seed", "z_loss", "part", "rollout", "rollout_steps", "distill_weight")
  ),
  "model": HOW_TO_RUN,
}
