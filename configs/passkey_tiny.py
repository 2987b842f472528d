"""The paper's pass key on a laptop: recalled after a million tokens.

The model has a hundred thousand parameters and the 57 words of the task. Each example has at most
16 segments of 64 tokens, all under the gradient. From step 600 on, most chunks start from warm
memories of up to 16 million tokens. Only a few thousand of these are read; the others are
fast-forwarded (warm.growth). A write gate learns not to write filler.
docs/memory.md gives the reasons for this recipe.

Command: make passkey
Command: python benchmarks/passkey.py --workdir=runs/passkeys
Hardware: 2 CPU cores
Time: 8.4 minutes of training (linear rule) on an idle machine
Expect: 1.00 of the keys at 1,024 to 1,048,576 tokens, at the start, in the middle and at the end
(both rules, seeds 0 to 2)
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  task, warm, e = config.task, config.warm, config.evaluation

  task.name, task.digits = "passkey", 4
  task.late = 0.25
  task.curriculum_steps = 500  # from 2 segments to 16
  warm.share, warm.start_step, warm.weight = 0.9, 600, 3.0
  warm.segments, warm.min_tokens, warm.max_tokens = 4, 2048, 16_777_216
  warm.growth = 1.2
  d.tokenizer = "task"
  d.carry_state = False
  d.lanes, d.segments = 4, 16

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 2, 64, 4, 4, 32, 128
  m.vocab_size = 64
  m.segment_length = 64
  config.infini.write_gate = True
  config.run.implementation = "scan"  # the faster form for so small a model on a CPU
  config.run.remat = "none"

  o.name = "muon"  # learns the task in a quarter of the steps of AdamW
  o.learning_rate, o.warmup_steps, o.b2, o.weight_decay = 5e-3, 50, 0.98, 0.0
  o.final_fraction = 0.02
  o.gate_learning_rate = 0.003  # low: gates must not open before the features are learned
  t.steps, t.log_every, t.checkpoint_every = 2500, 20, 10_000

  e.lengths, e.depths, e.samples = (1024, 4096, 16_384, 65_536), (0.0, 0.5, 1.0), 100
  e.lanes, e.segments = 30, 16
  return config
