"""The paper's fine-tuning on the pass key (arXiv 2404.07143, section 4.3): 400 steps on 5K inputs.

It starts from the parameters of another run (set `--config.train.start_from`), here a run of
`lm_paper.py` in the folder LM. It is then evaluated on keys at the start, in the middle and at the
end of 32K to 1M tokens. Zero-shot is the same evaluation of the run in LM.

Command: python train.py --config=configs/passkey_finetune.py --workdir=RUN
Command: python eval.py --config=configs/passkey_finetune.py --workdir=RUN
Command: python eval.py --config=configs/lm_paper.py --workdir=LM --task=passkey \\
  --config.evaluation.lengths="(32768,131072,262144,524288,1048576)" --config.evaluation.samples=20
Hardware: one GPU or TPU chip with 16 GB or more
Time: not measured
Expect: not measured; the paper reports 94 to 100% of tokens right at 1M
"""

from infini_jax.config import base_config


def get_config():
  config = base_config()
  m, d, o, t = config.model, config.data, config.optimizer, config.train
  task, e = config.task, config.evaluation

  t.start_from = "LM"
  task.name, task.digits = "passkey", 4
  task.min_segments = 3
  d.tokenizer = "run"  # LM's
  d.carry_state = False
  d.lanes, d.segments = 16, 3  # 4,097 to 6,144 tokens an example

  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 12, 1024, 8, 8, 128, 4096
  m.vocab_size = 32_000
  m.segment_length = 2048
  config.run.compute_dtype = "bfloat16"

  o.learning_rate, o.warmup_steps, o.final_fraction = 1e-4, 20, 1.0
  o.weight_decay = 0.0
  t.steps, t.log_every, t.checkpoint_every = 400, 10, 200

  e.lengths = (32_768, 131_072, 262_144, 524_288, 1_048_576)
  e.depths, e.samples = (0.0, 0.5, 1.0), 20
  e.lanes, e.segments = 4, 16
  return config
