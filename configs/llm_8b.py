"""8 billion parameters, Llama-3-like, on a pod: pretraining at 32K, or continued training at 8K.

32 layers, width 4096, 32 query and 8 key/value heads of 128, feed-forward 14,336, 128,256 tokens,
segments of 2048. `llm_8b.py` pretrains on 32,768 tokens per example. Every fsdp group of chips has
one example, and the segments of this example are divided over the `seq` axis.
`llm_8b.py:continual` continues the training of a run, as the paper does with its 8B model (section
4.2): 30,000 steps on inputs of 8,192 tokens, with gates that are nearly shut at the start.
`--config.train.start_from` names the run from which it starts.

Command: python train.py --config=configs/llm_8b.py --workdir=RUN --config.data.path=STORE
Command: infini-jax plan --config=configs/llm_8b.py --topology=v5p:4x4x4
Hardware: TPU v5p:4x4x4 (64 chips; fsdp 16 x seq 4); v5e:16x16 with mesh.fsdp=64 and
  data.lanes=64, evaluation.lanes=64
Plan: v5p:4x4x4: 6.37 GiB a chip as compiled; at most 7,311 tokens/s a chip (arithmetic)
Time: not measured
Expect: not measured
"""

from infini_jax.config import base_config


def get_config(kind="pretrain"):
  if kind not in ("pretrain", "continual"):
    raise ValueError(f"llm_8b.py:{kind}: choose pretrain or continual")
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "STORE"
  d.tokenizer = "huggingface:tokenizer.json"
  d.lanes, d.segments = 16, 16

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 32, 4096, 32, 8, 128, 14_336
  m.vocab_size = 128_256
  m.tied_embeddings = False
  config.family.rope_theta = 500_000.0
  m.segment_length = 2048
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps = 3e-4, 2000
  t.steps = 250_000
  t.eval_every, t.checkpoint_every, t.log_every = 5000, 1000, 20

  config.mesh.fsdp, config.mesh.seq = 16, 4
  config.evaluation.lanes, config.evaluation.segments = 16, 16

  if kind == "continual":
    d.lanes, d.segments = 64, 4
    config.infini.gate_init = (
      -5.0
    )  # the model begins as the one that was pretrained without a memory
    o.learning_rate, o.warmup_steps = 1e-4, 1000
    t.steps = 30_000
    config.mesh.fsdp, config.mesh.seq = 64, 1
    config.evaluation.lanes = 64
  return config
