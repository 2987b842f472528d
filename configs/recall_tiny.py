"""Associative recall on a laptop: 32 pairs, recalled after a million tokens.

The model has a hundred thousand parameters and a vocabulary of 32 keys and 32 values. Training
begins inside one segment, where local attention learns which value belongs to which key. The memory
reads and writes with the same queries and keys, and is used when examples grow to 16 segments. The
delta rule keeps 32 keys apart in heads of 32. Then memories are fast-forwarded (warm.growth), and a
write gate learns not to write filler.

Command: make recall
Command: python eval.py --workdir=runs/recall --config.evaluation.lengths="(1049088,)" \\
  --config.evaluation.samples=10 --config.evaluation.lanes=10
Hardware: 2 CPU cores
Time: 20 minutes of training on one core with other work running
Expect: 1.00 of the values in 512 tokens, and after 65,536 and 1,048,576 tokens of filler; with the
memory held empty 0.03, which is chance
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  task, warm, e = config.task, config.warm, config.evaluation

  task.name, task.pairs = "recall", 32
  task.distinct_keys, task.distinct_values = 32, 32
  task.min_segments, task.curriculum_steps = 1, 1000  # one segment alone for 150 steps
  task.span = 512  # the pairs are in the first 512 tokens; the rest of a longer text is filler
  task.context_weight = 0.0  # the order of the pairs is random: there is nothing to learn
  warm.share, warm.start_step, warm.weight = 0.9, 1000, 3.0
  warm.segments, warm.min_tokens, warm.max_tokens = 4, 1024, 16_777_216
  warm.growth = 1.2
  d.tokenizer = "task"
  d.carry_state = False
  d.lanes, d.segments = 8, 16

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 2, 64, 4, 4, 32, 128
  m.vocab_size = 72
  m.segment_length = 32
  config.infini.rule = "delta"
  config.infini.write_gate = True
  config.run.implementation = "scan"  # the faster form for so small a model on a CPU
  config.run.remat = "none"

  o.name = "muon"  # half the steps of AdamW, and better
  o.learning_rate, o.warmup_steps, o.b2, o.weight_decay = 3e-3, 50, 0.98, 0.0
  o.final_fraction = 0.02
  o.gate_learning_rate = 0.003  # low: gates must not open before the features are learned
  t.steps, t.log_every, t.checkpoint_every = 2000, 20, 10_000

  e.lengths, e.samples = (512, 66_048), 100  # 66,048: 65,536 tokens of filler after the pairs
  e.lanes, e.segments = 25, 16
  return config
