"""The paper's fine-tuning on BookSum (arXiv 2404.07143, section 4.3): 32K inputs, lr 1e-4.

It starts from the parameters of another run (set `--config.train.start_from`). Here this run has
the shape of `llm_1b.py` and is in the folder LM. The model learns to write the summary of a book
after the first 32,768 tokens of the book. The evaluation then gives it up to 500,000 tokens of a
book. With --config.data.carry_state=True it learns from whole books (docs/chat.md).

Command: infini-jax prepare --source=tfds:booksum/book --out=STORE \\
  --tokenizer=huggingface:LM/tokenizer/tokenizer.json
Command: python train.py --config=configs/booksum_finetune.py --workdir=RUN
Command: python eval.py --config=configs/booksum_finetune.py --workdir=RUN --task=summarization
Hardware: 16 chips with 16 GB or more
Time: not measured
Expect: not measured; the paper reports an overall ROUGE of 18.5 for 8B (Linear + Delta)
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  e = config.evaluation

  t.start_from = "LM"
  config.task.name = "summarization"
  config.task.context_weight = 0.1
  d.path, d.tokenizer = "STORE", "run"  # LM's
  d.carry_state = False
  d.lanes, d.segments = 16, 16

  config.infini.rule = "delta"
  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 16, 2048, 16, 8, 128, 8192
  m.vocab_size = 128_256
  m.segment_length = 2048
  m.tied_embeddings = False
  config.family.rope_theta = 500_000.0
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps = 1e-4, 50
  t.steps, t.log_every, t.checkpoint_every = 1000, 10, 200

  e.max_tokens, e.summary_length = 500_000, 1024
  e.temperature, e.top_p = 0.5, 0.95
  e.lanes, e.segments = 16, 16
  config.mesh.fsdp = 16
  return config
