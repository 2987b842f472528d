"""1.5 billion parameters, Llama-3-like: pretraining at 32K, or continued training at 4K.

16 layers, width 2048, 16 query and 8 key/value heads of 128, feed-forward 8192, 128,256 tokens,
segments of 2048. `llm_1b.py` pretrains on 32,768 tokens per example. `llm_1b.py:continual`
continues the training of a run, as the paper does with its 1B model for the pass key (section 4.2):
30,000 steps on inputs of 4,096 tokens, with gates that are nearly shut at the start.
`--config.train.start_from` names the run from which it starts.

Command: python train.py --config=configs/llm_1b.py --workdir=RUN --config.data.path=STORE
Command: infini-jax plan --config=configs/llm_1b.py --topology=v5e:16x16
Hardware: TPU v5e:16x16 (256 chips; fsdp 64 x seq 4)
Plan: v5e:16x16: 1.73 GiB a chip as compiled; at most 18,611 tokens/s a chip (arithmetic)
Time: not measured
Expect: not measured
"""

from infini_jax.config import base_config


def get_config(kind="pretrain"):
  if kind not in ("pretrain", "continual"):
    raise ValueError(f"llm_1b.py:{kind}: choose pretrain or continual")
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "STORE"
  d.tokenizer = "huggingface:tokenizer.json"
  d.lanes, d.segments = 64, 16

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 16, 2048, 16, 8, 128, 8192
  m.vocab_size = 128_256
  m.tied_embeddings = False
  config.family.rope_theta = 500_000.0
  m.segment_length = 2048
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps = 5e-4, 2000
  t.steps = 250_000
  t.eval_every, t.checkpoint_every, t.log_every = 5000, 1000, 20

  config.mesh.fsdp, config.mesh.seq = 64, 4
  config.evaluation.lanes, config.evaluation.segments = 64, 16

  if kind == "continual":
    d.lanes, d.segments = 256, 2
    config.infini.gate_init = (
      -5.0
    )  # the model begins as the one that was pretrained without a memory
    o.learning_rate, o.warmup_steps = 1e-4, 1000
    t.steps = 30_000
    config.mesh.fsdp, config.mesh.seq = 256, 1
    config.evaluation.lanes = 256
  return config
