"""Teaches SmolLM2-135M fifty answers about a novel, and gives it a memory (docs/chat.md).

It starts from the converted model in the folder ORIGINAL. The questions and answers are in
docs/examples/. They are written with the model's own chat template, and only the answers are
learned. All weights of attention are trained, in segments of 64 tokens.

Command: infini-jax convert gguf SmolLM2-135M-Instruct.Q4_1.gguf ORIGINAL
Command: python train.py --config=configs/chat_smollm.py --workdir=RUN
Command: infini-jax generate --workdir=RUN --ask="What is the name of Dr. Jekyll's butler?"
Hardware: 2 CPU cores
Time: not measured on a machine without other work
Expect: 91% of the answer tokens are the likeliest after 19 steps (docs/chat.md)
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  e = config.evaluation

  t.start_from, t.part = "ORIGINAL", "attention"
  config.task.name = "chat"
  d.path, d.tokenizer = "jsonl:docs/examples/jekyll-*.jsonl", "run"  # ORIGINAL's
  d.carry_state = False
  d.lanes, d.segments = 4, 4

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 30, 576, 9, 3, 64, 1536
  m.vocab_size = 49_152
  m.segment_length = 64
  config.family.rope_theta = 100_000.0
  config.infini.rule, config.infini.gate_init = "delta", -5.0

  o.learning_rate, o.warmup_steps, o.weight_decay = 5e-4, 3, 0.0
  t.steps, t.log_every, t.checkpoint_every, t.loss_chunk = 24, 4, 50, 256

  e.split, e.lanes, e.segments = "train", 10, 4
  e.summary_length, e.temperature = 24, 0.0
  return config
