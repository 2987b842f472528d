"""One sequence of 1,048,576 tokens, all of it under the gradient: 8 billion parameters, delta.

There are 512 segments of 2048 tokens, 8 of them on each of 64 chips. Attention needs no data of
other chips. For the memory, the chips exchange one state per head, for every length.

Command: python train.py --config=configs/million.py --workdir=RUN --config.data.path=STORE
Command: infini-jax plan --config=configs/million.py --topology=v5p:4x4x4
Hardware: TPU v5p:4x4x4 (64 chips; seq 64)
Plan: v5p:4x4x4: 11.48 GiB a chip as compiled; at most 7,308 tokens/s a chip (arithmetic)
Time: not measured
Expect: not measured
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "STORE"
  d.tokenizer = "huggingface:tokenizer.json"
  d.lanes, d.segments = 1, 512
  d.carry_state = False

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 32, 4096, 32, 8, 128, 14_336
  m.vocab_size = 128_256
  m.tied_embeddings = False
  config.family.rope_theta = 500_000.0
  m.segment_length = 2048
  config.infini.rule = "delta"
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps = 1e-4, 500
  t.steps = 10_000
  t.checkpoint_every, t.log_every = 500, 10

  config.mesh.seq = 64
  config.evaluation.lanes, config.evaluation.segments = 1, 512
  return config
