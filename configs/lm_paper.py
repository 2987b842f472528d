"""The paper's language model (arXiv 2404.07143, section 4.2), for PG19 or arXiv.

12 layers, width 1024, 8 heads of 128, feed-forward 4096, segments of 2048 tokens, 32,768 tokens per
example: 16 memory updates under the gradient. The optimizer is Adafactor with batch 64. The
learning-rate schedule has 1,000 steps of warm-up, the peak 0.01, and a cosine. The paper does not
give the vocabulary, the number of steps and the initial value of the gates. Here they are 32k
pieces trained on the corpus, 100,000 steps, and gates at 0 with a learning rate of their own.

Command: infini-jax plan --config=configs/lm_paper.py --table=memory
Command: infini-jax prepare --source=BOOKS --out=STORE --tokenizer=train:32000
Command: python train.py --config=configs/lm_paper.py --workdir=RUN --config.data.path=STORE
Hardware: 64 chips with 16 GB or more (one example each); fewer with config.train.accumulate
Time: not measured
Expect: not measured here; the paper reports a perplexity per token of 9.65 on PG19
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train

  d.path = "STORE"
  d.tokenizer = "train:32000"
  d.lanes, d.segments = 64, 16
  d.carry_state = False  # every example starts with an empty memory, as in the paper

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 12, 1024, 8, 8, 128, 4096
  m.vocab_size = 32_000
  m.segment_length = 2048
  config.run.compute_dtype = "bfloat16"
  # The paper's values for the baselines: RMT's best prompt length, a store in the ninth layer.
  config.rmt.summary_tokens = config.autocompressor.summary_tokens = 100
  config.memorizing.knn_layers, config.memorizing.knn_memory = (9,), 65_000

  o.name = "adafactor"
  o.learning_rate, o.warmup_steps = 0.01, 1000
  o.weight_decay = 0.0
  t.steps = 100_000
  t.eval_every, t.checkpoint_every, t.log_every = 2000, 1000, 50

  config.evaluation.lanes, config.evaluation.segments = 64, 16
  return config
