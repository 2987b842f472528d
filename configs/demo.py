"""A small Infini-Transformer on the source of the Python standard library: `make demo`.

The model has two million parameters and segments of 128 tokens. The vocabulary has 2,048 pieces and
is trained on the text. Each lane carries its memory from step to step, so the memory can hold the
text of a whole file.

Command: python train.py --config=configs/demo.py --workdir=runs/demo
Command: python eval.py --config=configs/demo.py --workdir=runs/demo
Hardware: 2 CPU cores, 1.1 GiB
Time: 3:57 (minutes:seconds), generation and evaluation included
Expect: perplexity per token about 65 on held-out files, about 98 with the memory held empty
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "python-stdlib"
  d.tokenizer = "train:2048"
  d.lanes, d.segments = 4, 4

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 4, 192, 6, 3, 32, 512
  m.vocab_size = 2048
  m.segment_length = 128
  config.run.remat = "none"

  o.learning_rate, o.warmup_steps = 4e-3, 50
  o.gate_learning_rate = 0.021  # large, because the run is short
  t.steps, t.log_every = 360, 10
  t.checkpoint_every = 1000

  config.evaluation.lanes, config.evaluation.segments = 8, 8
  config.evaluation.max_documents = 16
  return config
