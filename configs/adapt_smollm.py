"""Adds a memory to SmolLM2-135M by the paper's recipe for LLMs (arXiv 2404.07143, section 4.3).

`adapt_smollm.py:pretrain` (the default) continues the training of the converted model in the folder
ORIGINAL on the long documents in the folder BOOKS. Segments have 256 tokens first, then 512, 1,024
and 2,048, always with 16 segments under the gradient. `adapt_smollm.py:passkey` fine-tunes the
result, in the folder PRETRAINED, on pass keys in 5K tokens. It is then evaluated on keys in up to a
million tokens. `adapt_smollm.py:laptop` is the small proof, for 2 CPU cores. It fine-tunes ORIGINAL
itself on pass keys in 256 tokens, with segments of 64. `adapt_smollm.py:far` continues from the
folder LAPTOP. In this stage most examples start from the memory of up to 8,192 tokens.
`adapt_smollm.py:keys` and `:million`, for 2 CPU cores too, change no parameter of ORIGINAL. They
train low-rank adapters of the memory's queries, keys and values, write gates and gates, as in
adapters/smollm2-135m-passkey; `:million` with one lane of four on BOOKS. `adapt_smollm.py:text`
trains the same parameters on BOOKS alone, with segments of 128 and memories that have read other
text, fast-forwarded. docs/adapt.md explains all stages.

Command: infini-jax convert gguf SmolLM2-135M-Instruct.Q4_1.gguf ORIGINAL
Command: python train.py --config=configs/adapt_smollm.py --workdir=PRETRAINED
Command: python eval.py --config=configs/adapt_smollm.py --workdir=PRETRAINED --task=surgery
Command: python train.py --config=configs/adapt_smollm.py:passkey --workdir=PASSKEY
Command: python eval.py --config=configs/adapt_smollm.py:passkey --workdir=PASSKEY
Command: python train.py --config=configs/adapt_smollm.py:laptop --workdir=LAPTOP
Command: python train.py --config=configs/adapt_smollm.py:far --workdir=FAR
Command: python train.py --config=configs/adapt_smollm.py:keys --workdir=KEYS
Command: python train.py --config=configs/adapt_smollm.py:million --workdir=MILLION
Command: python train.py --config=configs/adapt_smollm.py:text --workdir=TEXT
Hardware: one GPU with 40 GB or more; 2 CPU cores for `:laptop`, and for the other stages in a short
form (docs/adapt.md)
Time: not measured; `:laptop` 65 minutes on 2 CPU cores with other work, `:far` 45 minutes; on one
thread of two `:keys` 37 minutes, `:million` 164
Expect: not measured; the paper's 1B model found 94 to 100% of tokens at 1M. `:laptop` finds all
keys in 256 tokens, and 0.60 of them in 1,024. `:far` finds 0.85 to 1.00 in 1,024, and 0.65 to 0.95
in 4,096. `:million` finds all keys in up to 1,048,576. With the memory held empty they find none
"""

from infini_jax.config import base_config

STAGES = ("pretrain", "passkey", "laptop", "far", "keys", "million", "text")


def get_config(stage="pretrain"):
  if stage not in STAGES:
    raise ValueError(f"adapt_smollm.py:{stage}: choose one of {', '.join(STAGES)}")
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  e = config.evaluation

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 30, 576, 9, 3, 64, 1536
  m.vocab_size = 49_152
  config.family.rope_theta = 100_000.0
  config.infini.rule = "delta"
  config.infini.gate_init = -5.0
  m.segment_length = 2048
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.weight_decay = 1e-4, 0.1
  d.path, d.tokenizer = "BOOKS", "run"  # ORIGINAL's

  if stage == "pretrain":
    t.start_from = "ORIGINAL"
    d.lanes, d.segments = 8, 16
    t.rollout, t.rollout_steps = (256, 512, 1024), 1000
    t.steps, t.log_every, t.checkpoint_every = 6000, 10, 500
    o.warmup_steps = 200
  elif stage != "text":
    config.task.name, config.task.digits = "passkey", 4
    d.carry_state = False
    t.steps, t.log_every = 400, 10
    o.warmup_steps, o.final_fraction, o.weight_decay = 20, 1.0, 0.0
    o.gate_learning_rate = 0.04  # large enough to open a gate from -5 in 400 steps
  if stage == "passkey":
    t.start_from = "PRETRAINED"
    t.checkpoint_every = 200
    config.task.min_segments = 3
    d.lanes, d.segments = 16, 3  # 4,097 to 6,144 tokens an example
  if stage in ("laptop", "far"):
    t.start_from, t.part = "ORIGINAL", "attention"
    t.checkpoint_every, t.loss_chunk = 50, 256
    config.task.curriculum_steps = 150
    o.learning_rate = 2e-4
    d.path = ""
    m.segment_length = 64
    config.run.compute_dtype = "float32"
    d.lanes, d.segments = 4, 4
  if stage == "far":
    t.start_from, t.steps = "LAPTOP", 160
    config.task.curriculum_steps = 0
    o.learning_rate, o.gate_learning_rate = 1e-4, 0.02
    w = config.warm
    w.share, w.weight, w.segments = 0.6, 2.0, 4
    w.min_tokens, w.max_tokens = 256, 8192

  if stage in ("keys", "million"):
    config.infini.rule, config.infini.gate_init = "linear", -2.0
    config.infini.write_gate, config.infini.adapter_rank = True, 16
    t.part, t.checkpoint_every, t.loss_chunk = "gates", 50, 256
    config.task.late = 0.2
    d.path = ""
    m.segment_length = 64
    d.lanes, d.segments = 4, 4
    w = config.warm
    w.weight, w.segments, w.growth, w.max_tokens = 2.0, 4, 1.5, 4_194_304
  if stage == "keys":
    t.start_from, t.steps = "ORIGINAL", 285
    config.task.curriculum_steps = 150
    o.learning_rate, o.final_fraction = 1e-3, 0.1
    w.share, w.start_step, w.min_tokens = 0.8, 200, 512
  if stage == "million":
    t.start_from, t.steps = "KEYS", 1000
    d.path = "BOOKS"
    config.infini.write_penalty = 0.1  # else the filler is still written after 300 steps
    config.task.text_lanes, config.task.text_weight = 1, 2.0
    config.task.curriculum_steps = 0
    o.learning_rate, o.gate_learning_rate = 3e-3, 0.02
    o.warmup_steps, o.final_fraction = 10, 0.02
    w.share, w.min_tokens, w.filler = 0.9, 1024, 1.0

  if stage == "text":
    t.start_from, t.part = "ORIGINAL", "gates"
    config.infini.gate_init = -2.0
    config.infini.write_gate, config.infini.adapter_rank = True, 16
    t.steps, t.log_every, t.checkpoint_every, t.loss_chunk = 260, 10, 20, 256
    o.learning_rate, o.gate_learning_rate, o.weight_decay = 1e-3, 0.04, 0.0
    o.warmup_steps, o.final_fraction = 10, 0.1
    m.segment_length = 128
    d.lanes, d.segments, d.carry_state = 4, 4, False
    w = config.warm
    w.share, w.segments, w.growth = 0.8, 2, 1.25
    w.min_tokens, w.max_tokens = 1024, 262_144

  e.max_documents, e.max_tokens = 16, 131_072
  e.lengths = (32_768, 131_072, 262_144, 524_288, 1_048_576)
  e.depths, e.samples = (0.0, 0.5, 1.0), 20
  e.lanes, e.segments = 4, 16
  if stage in ("laptop", "far"):
    e.lengths, e.depths, e.samples = (256, 1024, 4096), (0.0, 0.5), 20
    e.lanes, e.segments = 20, 4
  if stage == "text":
    e.max_tokens, e.lanes, e.knock_out = 0, 4, ("empty", "swap")
  if stage in ("keys", "million"):
    e.lengths, e.samples, e.lanes = (1024, 8192, 32_768), 8, 8
  return config
