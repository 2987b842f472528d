"""Every memory system at one size, on the same batches: a small form of the paper's Table 2.

SYSTEM in `compare.py:SYSTEM` is infini-linear, infini-delta, or any other memory system of
docs/mixers.md, such as gated_delta or rmt. All systems read the same documents in the same
lanes, and carry the state from chunk to chunk. The exception is `full`: its state would grow, so
each of its chunks is read separately.

Command: python benchmarks/compare.py --workdir=runs/compare
Command: python train.py --config=configs/compare.py:rmt --workdir=RUN
Hardware: 2 CPU cores
Time: 10 to 20 minutes per system on one core of a busy machine; `full` 40 minutes
Expect: perplexity 38.0 (compressive) to 43.1 (autocompressor), infini-delta 38.8, `full` 58.0;
docs/results.md
"""

from infini_jax import config as lib
from infini_jax.config import base_config

# Fields of systems whose defaults are for larger models.
SMALL = {
  "compressive": {"compression_rate": 4, "compressed_memory": 64},
  "memorizing": {"knn_layers": (3,), "knn_memory": 2048, "knn_top": 16},
  "rmt": {"summary_tokens": 8},
  "autocompressor": {"summary_tokens": 8, "summary_steps": 4},
}
SYSTEMS = {
  "infini-linear": ("infini", {"rule": "linear"}),
  "infini-delta": ("infini", {"rule": "delta"}),
  **{name: (name, SMALL.get(name, {})) for name in lib.SYSTEMS if name != "infini"},
}


def get_config(system="infini-linear"):
  if system not in SYSTEMS:
    raise ValueError(f"compare.py:{system}: choose one of {', '.join(SYSTEMS)}")
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  m.mixer, fields = SYSTEMS[system]
  if fields:
    config[m.mixer].update(fields)

  d.path = "python-stdlib"
  d.tokenizer = "train:2048"
  d.lanes, d.segments = 8, 8
  d.carry_state = not lib.SYSTEMS[m.mixer].grows

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 4, 128, 4, 4, 32, 384
  m.vocab_size = 2048
  m.segment_length = 64
  config.run.remat = "none"

  o.learning_rate, o.warmup_steps = 3e-3, 50
  o.gate_learning_rate = 0.015  # large, because the run is short
  t.steps, t.log_every = 500, 10  # 4,096 tokens each: 2 million
  t.checkpoint_every = 1000

  config.evaluation.lanes, config.evaluation.segments = 8, 8
  config.evaluation.max_documents = 16
  return config
