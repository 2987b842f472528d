"""Sequences of 131,072 tokens: 1.5 billion parameters, over 16 chips for each sequence.

Each sequence has 64 segments of 2048 tokens, 4 of them on each chip of the `seq` axis. There are 16
sequences at the same time.

Command: python train.py --config=configs/long_100k.py --workdir=RUN --config.data.path=STORE
Command: infini-jax plan --config=configs/long_100k.py --topology=v5e:16x16
Hardware: TPU v5e:16x16 (256 chips; fsdp 16 x seq 16)
Plan: v5e:16x16: 1.61 GiB a chip as compiled; at most 18,581 tokens/s a chip (arithmetic)
Time: not measured
Expect: not measured
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "STORE"
  d.tokenizer = "huggingface:tokenizer.json"
  d.lanes, d.segments = 16, 64

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 16, 2048, 16, 8, 128, 8192
  m.vocab_size = 128_256
  m.tied_embeddings = False
  config.family.rope_theta = 500_000.0
  m.segment_length = 2048
  config.infini.rule = "delta"
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps = 2e-4, 1000
  t.steps = 20_000
  t.checkpoint_every, t.log_every = 500, 10

  config.mesh.fsdp, config.mesh.seq = 16, 16
  config.evaluation.lanes, config.evaluation.segments = 16, 64
  return config
