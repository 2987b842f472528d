"""Associative recall of 32 pairs spread over 16 segments, on a laptop.

Command: python train.py --config=configs/recall_tiny.py --workdir=runs/recall
Command: python eval.py --config=configs/recall_tiny.py --workdir=runs/recall
Hardware: 2 CPU cores
Time:
Expect:
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  task, e = config.task, config.evaluation

  task.name, task.pairs, task.distinct_keys, task.distinct_values = "recall", 32, 64, 64
  task.min_segments = 2
  d.tokenizer = "task"
  d.carry_state = False
  d.lanes, d.segments = 8, 18  # 16 of pairs, 2 of questions

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 2, 64, 2, 2, 64, 128
  m.vocab_size = 136
  m.segment_length = 32
  m.rule = "delta"
  m.implementation = "scan"
  m.remat = "none"

  o.learning_rate, o.warmup_steps, o.b2, o.weight_decay = 5e-3, 50, 0.98, 0.0
  o.gate_learning_rate = 0.02
  t.steps, t.log_every, t.checkpoint_every = 2000, 20, 10_000

  e.lengths, e.samples, e.lanes, e.segments = (18 * 32,), 100, 10, 18
  return config
