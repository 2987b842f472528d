"""Every error that the values of a config can make, each with its remedy."""

import importlib.util

from infini_jax.config.adaptation import check_adaptation
from infini_jax.config.schema import (
  ACTIVATIONS,
  ALL_SPLITS,
  COMPRESSIONS,
  DTYPES,
  FAMILIES,
  GATES,
  IMPLEMENTATIONS,
  KERNELS,
  KNOCK_OUTS,
  LEAST,
  MIXERS,
  MOST,
  OPTIMIZERS,
  PARTS,
  REMAT_POLICIES,
  RULES,
  SPLITS,
  TASKS,
  Config,
  InputError,
  ModelConfig,
)


def check(config: Config) -> None:
  """Raises InputError, with the remedy, for the first wrong field of a config."""
  m, d, o, t, e = config.model, config.data, config.optimizer, config.train, config.evaluation
  for name, value, choices in (
    ("model.mixer", m.mixer, MIXERS),
    ("model.rule", m.rule, RULES),
    ("model.compression", m.compression, COMPRESSIONS),
    ("model.gate", m.gate, GATES),
    ("model.activation", m.activation, ACTIVATIONS),
    ("model.remat", m.remat, REMAT_POLICIES),
    ("model.implementation", m.implementation, IMPLEMENTATIONS),
    ("model.attention", m.attention, KERNELS),
    ("model.compute_dtype", m.compute_dtype, DTYPES),
    ("model.param_dtype", m.param_dtype, DTYPES),
    ("optimizer.name", o.name, OPTIMIZERS),
    ("train.part", t.part, PARTS),
    ("task.name", config.task.name, TASKS),
    ("task.family", config.task.family, FAMILIES),
    ("evaluation.task", e.task or config.task.name, TASKS),
    *(("evaluation.knock_out", name, KNOCK_OUTS) for name in e.knock_out),
    ("evaluation.split", e.split, (*SPLITS, ALL_SPLITS)),
  ):
    if value not in choices:
      raise InputError(f"config.{name}={value!r}: choose one of {', '.join(choices)}")
  positive = {
    "model": "lora_alpha layers width heads kv_heads head_dim ffn vocab_size segment_length"
    " rope_theta norm_eps embed_scale knn_memory knn_top compression_rate compressed_memory"
    " summary_tokens summary_steps",
    "data": "lanes segments prefetch",
    "optimizer": "learning_rate gate_learning_rate eps",
    "train": "steps accumulate loss_chunk log_every eval_documents checkpoint_every"
    " keep_checkpoints",
    "evaluation": "lanes segments samples summary_length top_p",
    "task": "digits pairs distinct_keys distinct_values min_segments needles hops facts",
    "warm": "segments min_tokens weight",
  }
  not_negative = {
    "model": "lora_rank segment_jitter query_scale attention_softcap logit_softcap window"
    " global_every window_theta",
    "optimizer": "warmup_steps final_fraction weight_decay clip_norm b1 b2",
    "train": "seed rollout_steps distill_weight z_loss eval_every profile_start profile_steps",
    "evaluation": "max_documents max_tokens input_tokens temperature",
    "task": "curriculum_steps repeat_weight context_weight span late",
    "warm": "share start_step",
  }
  for bound, groups in ((0, positive), (None, not_negative)):
    for section, names in groups.items():
      for name in names.split():
        value = getattr(getattr(config, section), name)
        if value < 0 or value == bound:
          what = "more than 0" if bound == 0 else "0 or more"
          raise InputError(f"config.{section}.{name}={value}: must be {what}")
  for name in ("b1", "b2"):
    if (value := getattr(o, name)) >= 1:
      raise InputError(
        f"config.optimizer.{name}={value}: must be below 1, or no mean is ever taken"
      )
  if m.heads % m.kv_heads:
    raise InputError(
      f"config.model.heads={m.heads} is not a multiple of config.model.kv_heads={m.kv_heads}: "
      f"each key/value head serves the same number of query heads"
    )
  if m.head_dim % 2:
    raise InputError(
      f"config.model.head_dim={m.head_dim}: rotary positions turn pairs, choose an even size"
    )
  _check_rope(m.rope_scaling)
  _check_window(m)
  if d.lanes % t.accumulate:
    raise InputError(
      f"config.data.lanes={d.lanes} is not a multiple of config.train.accumulate={t.accumulate}: "
      f"the lanes are divided among the microbatches"
    )
  if d.carry_state and m.mixer == "full":
    raise InputError(
      "config.data.carry_state=True with config.model.mixer='full': its state grows without end; "
      "set config.data.carry_state=False"
    )
  if m.mixer == "compressive" and m.segment_length % m.compression_rate:
    raise InputError(
      f"config.model.compression_rate={m.compression_rate} does not divide "
      f"config.model.segment_length={m.segment_length}: a segment is compressed whole"
    )
  if m.mixer in ("rmt", "autocompressor") and "layers" in config.evaluation.knock_out:
    raise InputError(
      f"config.evaluation.knock_out='layers' with config.model.mixer={m.mixer!r}: one memory "
      f"serves all its layers; leave 'empty' or 'reads'"
    )
  if "swap" in config.evaluation.knock_out:
    _check_swap(config)
  if m.segment_jitter >= 1:
    raise InputError(
      f"config.model.segment_jitter={m.segment_jitter}: must be below 1, or a segment may be empty"
    )
  if m.mixer == "memorizing":
    for layer in m.knn_layers:
      if not 1 <= layer <= m.layers:
        raise InputError(
          f"config.model.knn_layers={m.knn_layers}: there is no layer {layer}; they are counted "
          f"from 1 to config.model.layers={m.layers}"
        )
  if m.gate == "hard_sigmoid" and abs(m.gate_init) >= 3:
    raise InputError(
      f"config.model.gate_init={m.gate_init} with config.model.gate='hard_sigmoid': it has no "
      f"gradient from 3 on; set gate_init to -2.9 to adapt a trained model"
    )
  if not 0 < m.decay <= 1:
    raise InputError(f"config.model.decay={m.decay}: must be above 0, and at most 1 (no decay)")
  if m.z_correction and m.rule != "delta":
    raise InputError(
      "config.model.z_correction=True with config.model.rule='linear': its read-outs would grow "
      "without end, for z stands still; set config.model.rule='delta'"
    )
  _check_task(config)
  check_adaptation(config)
  for name in ("dcn", "fsdp", "seq", "tensor"):
    if (size := getattr(config.mesh, name)) < 1:
      raise InputError(f"config.mesh.{name}={size}: must be at least 1")
  if config.mesh.data < 1 and config.mesh.data != -1:
    raise InputError(f"config.mesh.data={config.mesh.data}: must be at least 1, or -1 for the rest")
  if config.mesh.seq > 1:
    _check_sequence_parallel(config)
  if t.wandb:
    _require("wandb", "config.train.wandb=True", "pip install -e '.[wandb]'")


def _check_rope(scaling: tuple[float, ...]) -> None:
  if len(scaling) not in (0, 1, 4, 5) or min(scaling, default=1) <= 0:
    raise InputError(
      f"config.model.rope_scaling={scaling}: give (factor,), or (factor, low, high, original) as "
      f"Llama 3 has, and magnitude behind it for YaRN, all more than 0"
    )
  if len(scaling) > 1 and scaling[1] >= scaling[2]:
    raise InputError(
      f"config.model.rope_scaling={scaling}: its low={scaling[1]} must be below high={scaling[2]}"
    )


def _check_window(m: ModelConfig) -> None:
  if m.global_nope and not m.global_every:
    raise InputError(
      "config.model.global_nope=True with config.model.global_every=0: no layer is global; set "
      "config.model.global_every, or it to False"
    )
  for name in ("global_every", "window_theta"):
    if (value := getattr(m, name)) and not (m.window or (name == "global_every" and m.global_nope)):
      raise InputError(
        f"config.model.{name}={value} without a window: set config.model.window, or it to 0"
      )
  if m.attention == "cudnn" and m.attention_softcap:
    raise InputError(
      f"config.model.attention='cudnn' with config.model.attention_softcap={m.attention_softcap}: "
      f"it cannot cap scores; set config.model.attention='auto'"
    )
  for name in ("window", "global_nope", "query_scale", "attention_softcap"):
    if (value := getattr(m, name)) and m.mixer not in ("infini", "local", "full"):
      raise InputError(
        f"config.model.{name}={value} with config.model.mixer={m.mixer!r}: infini, local and full "
        f"alone can do it; set it 0"
      )
  if m.mixer != "full" and m.window and m.segment_length > m.window:
    raise InputError(
      f"config.model.segment_length={m.segment_length} is more than config.model.window={m.window}"
      f": set config.model.segment_length to at most the window"
    )


def _check_sequence_parallel(config: Config) -> None:
  m, infini = config.model, config.model.mixer == "infini"
  for wrong, setting, why in (
    (
      m.mixer not in ("infini", "local"),
      f"mixer={m.mixer!r}",
      "its tokens see those of other segments; set config.mesh.seq=1",
    ),
    (
      infini and m.implementation == "scan",
      "implementation='scan'",
      "segments that wait for each other; set config.model.implementation='parallel'",
    ),
    (infini and m.z_correction, "z_correction=True", "each token needs z; set config.mesh.seq=1"),
  ):
    if wrong:
      raise InputError(f"config.mesh.seq={config.mesh.seq} with config.model.{setting}: {why}")


def _check_task(config: Config) -> None:
  d, task, warm, e = config.data, config.task, config.warm, config.evaluation
  if task.name != "text":
    if d.carry_state:
      raise InputError(
        f"config.data.carry_state=True with config.task.name={task.name!r}: its examples do not go "
        f"on from step to step; set config.data.carry_state=False (and see config.warm)"
      )
    if task.min_segments > d.segments:
      raise InputError(
        f"config.task.min_segments={task.min_segments} is more than config.data.segments="
        f"{d.segments}: an example is whole in one chunk"
      )
  if d.tokenizer == "task" and task.name not in ("passkey", "recall"):
    raise InputError("config.data.tokenizer='task' needs config.task.name='passkey' or 'recall'")
  for name, most in (("needles", 32), ("hops", 32), ("facts", 2)):
    if (count := getattr(task, name)) > most:
      raise InputError(f"config.task.{name}={count}: choose 1 to {most}")
  if warm.share and task.name == "summarization":
    raise InputError("config.warm.share with config.task.name='summarization': set it 0")
  if e.temperature and not LEAST <= e.temperature <= MOST:
    raise InputError(
      f"config.evaluation.temperature={e.temperature}: must be 0 (greedy), or from {LEAST:g} to "
      f"{MOST:g}"
    )
  if e.top_p > 1:
    raise InputError(f"config.evaluation.top_p={e.top_p}: a probability, at most 1")
  if warm.share > 1:
    raise InputError(f"config.warm.share={warm.share}: a probability, at most 1")
  if task.late > 1:
    raise InputError(f"config.task.late={task.late}: a share, at most 1")
  if warm.share and config.model.mixer == "full":
    raise InputError("config.warm.share with config.model.mixer='full': its state grows; set it 0")
  _check_growth(config)
  if warm.min_tokens > warm.max_tokens:
    raise InputError(
      f"config.warm.min_tokens={warm.min_tokens} is more than "
      f"config.warm.max_tokens={warm.max_tokens}: swap them"
    )
  for name, some in (("lengths", e.lengths), ("depths", e.depths)):
    if not some:
      raise InputError(f"config.evaluation.{name}=(): nothing to evaluate; give one or more")
  N = config.model.segment_length
  if e.input_tokens % N:
    raise InputError(
      f"config.evaluation.input_tokens={e.input_tokens} is no multiple of "
      f"config.model.segment_length={N}: set it to {max(1, round(e.input_tokens / N)) * N}"
    )
  for depth in e.depths:
    if not 0 <= depth <= 1:
      raise InputError(f"config.evaluation.depths: {depth} is outside 0 (start) to 1 (end)")
  for length in e.lengths:
    if length < 1:
      raise InputError(
        f"config.evaluation.lengths: {length} is no number of tokens: give 1 or more"
      )
  if task.pairs > task.distinct_keys:
    raise InputError(
      f"config.task.pairs={task.pairs} is more than config.task.distinct_keys="
      f"{task.distinct_keys}: each pair has a key of its own"
    )
  if 0 < task.span <= 2 * task.pairs:
    raise InputError(
      f"config.task.span={task.span}: config.task.pairs={task.pairs} pairs do not fit into so few "
      f"tokens; make it {2 * task.pairs + 1} or more, or 0"
    )


def _check_swap(config: Config) -> None:
  e = config.evaluation
  for wrong, setting, why in (
    (e.lanes == 1, "evaluation.lanes=1", "no other document is read beside it; set it 2 or more"),
    (config.mesh.seq > 1, f"mesh.seq={config.mesh.seq}", "set config.mesh.seq=1"),
    (
      (e.task or config.task.name) == "summarization",
      "evaluation.task='summarization'",
      "a summary is written with its own memory; leave 'swap' out",
    ),
  ):
    if wrong:
      raise InputError(f"config.evaluation.knock_out='swap' with config.{setting}: {why}")


def _check_growth(config: Config) -> None:
  m, growth = config.model, config.warm.growth
  if growth < 1:
    raise InputError(f"config.warm.growth={growth}: must be at least 1 (no fast-forward)")
  if growth == 1:
    return
  for wrong, setting in (
    (m.mixer != "infini", f"mixer={m.mixer!r}"),
    (m.decay != 1, f"decay={m.decay}"),
    (m.z_correction, "z_correction=True"),
  ):
    if wrong:
      raise InputError(
        f"config.warm.growth={growth} with config.model.{setting}: its state is no sum over the "
        f"text, so no part can count twice; set config.warm.growth=1"
      )


def _require(module: str, setting: str, remedy: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise InputError(f"{setting} needs the package {module!r}: {remedy}")
