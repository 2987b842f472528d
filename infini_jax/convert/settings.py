"""The keys of a `config.json` that change what a model computes. None of them is ignored.

A key is read (by `families` and `rope`), or has no influence, or is supported only at the value at
which it changes nothing. `unknown` reports all other keys.
"""

import json
from typing import Any

from infini_jax.config import InputError

GEMMA3 = ("gemma3_text",)
GEMMA = ("gemma2", *GEMMA3)
QWEN = ("qwen2", "qwen3")
# Keys that are read in every family, by `families` and `rope`.
READ = {
  *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
  *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
  *("hidden_act", "hidden_activation", "rms_norm_eps", "tie_word_embeddings"),
  *("rope_theta", "rope_scaling", "rope_parameters", "max_window_layers"),
}
# Keys that are read in some families. In the others they must have the value at which they change
# nothing: transformers ignores them there, so the author meant something that it does not compute.
READ_BY: dict[str, tuple[str, ...]] = {
  "sliding_window": ("mistral", *QWEN, "smollm3", *GEMMA),
  "sliding_window_pattern": GEMMA3,
  "layer_types": ("mistral", *QWEN, "smollm3", *GEMMA),
  "no_rope_layers": ("smollm3",),
  "no_rope_layer_interval": ("smollm3",),
  "query_pre_attn_scalar": GEMMA,
  "attn_logit_softcapping": ("gemma2",),
  "final_logit_softcapping": GEMMA,
  "rope_local_base_freq": GEMMA3,
  "original_max_position_embeddings": ("llama", "mistral", *QWEN, "smollm3", "gemma2"),
  "attention_bias": ("qwen2",),  # has biases for every value of this key
  "use_sliding_window": ("mistral", *QWEN),
  "qk_norm": ("qwen3", *GEMMA3),
  "use_qk_norm": ("qwen3", *GEMMA3),
}
# The value, besides null, at which a key changes nothing. False also stands for 0 and empty values.
NEUTRAL: dict[str, Any] = {
  **dict.fromkeys(READ_BY, False),
  "is_causal": True,
  "partial_rotary_factor": 1,
  "rotary_pct": 1,
  "rope_ratio": 1,
  "attention_multiplier": 1,
  "residual_multiplier": 1,
  "embedding_multiplier": 1,
  "logits_scaling": 1,
  "logit_scale": 1,
  "scale_emb": 1,
  **dict.fromkeys(("mlp_bias", "use_bidirectional_attention", "is_encoder_decoder"), False),
  **dict.fromkeys(("add_cross_attention", "alibi", "use_alibi", "rope_interleaved"), False),
  **dict.fromkeys(("quantization_config", "quantization", "compression_config"), False),
  **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), False),
  **dict.fromkeys(("per_layer_config", "pruned_heads", "clip_qkv", "attention_chunk_size"), False),
  **dict.fromkeys(("rotary_base", "rotary_emb_base", "rotary_dim", "qk_layernorm"), False),
  **dict.fromkeys(("attention_sink_size", "num_kv_shared_layers", "adapter_config"), False),
}
USUAL = {("gemma2", "sliding_window_pattern"): 2}  # the value that a family always has
WORDS = {
  "attention_bias": "attention_bias=true (of o_proj too)",
  "quantization_config": "quantization_config (quantized weights)",
  **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), "a mixture of experts"),
}
# Keys without influence on the logits: of training, generation, other heads, pictures, the author.
IDLE = {
  *("architectures", "transformers_version", "torch_dtype", "dtype", "auto_map", "name_or_path"),
  *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"),
  *("use_cache", "pretraining_tp", "is_decoder", "cross_attention_hidden_size", "torchscript"),
  *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "use_bfloat16"),
  *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "tokenizer_class"),
  *(
    "task_specific_params",
    "prefix",
    "sep_token",
    "chunk_size_feed_forward",
    "cache_implementation",
  ),
  *("tie_encoder_decoder", "tie_last_hidden_states", "model_max_length", "max_sequence_length"),
  *(
    "seq_length",
    "attn_implementation",
    "is_llama_config",
    "transformers.js_config",
    "tf_legacy_loss",
  ),
  *("text_config", "vision_config", "mm_tokens_per_image", "sliding_window_size"),
  # settings of generation, which old versions of transformers wrote here
  *("do_sample", "temperature", "top_k", "top_p", "typical_p", "max_length", "min_length"),
  *("num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty", "early_stopping"),
  *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
  *("repetition_penalty", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff"),
  *("exponential_decay_length_penalty", "output_scores", "return_dict_in_generate"),
  *("remove_invalid_values", "suppress_tokens", "begin_suppress_tokens", "max_new_tokens"),
  *("assistant_confidence_threshold", "assistant_lookbehind", "num_assistant_tokens"),
  *("num_assistant_tokens_schedule", "target_lookbehind"),
}
IDLE_ENDS = ("_token_id", "_token_index")
IDLE_STARTS = ("_", "unsloth")


def check_settings(raw: dict[str, Any], family: str, name: str) -> None:
  """Checks that every key that changes the computation is supported.

  Args:
    raw: the content of a `config.json`, without defaults.
    family: its `model_type`.
    name: the name of the file, for error messages.

  Raises:
    InputError: a key has a value that is not supported.
  """
  for key, neutral in NEUTRAL.items():
    neutral = USUAL.get((family, key), neutral)
    if family in READ_BY.get(key, ()) or not _changes(raw.get(key), neutral):
      continue
    if key == "layer_types" and set(raw[key]) == {"full_attention"}:
      continue
    setting = WORDS.get(key) or f"{key}={_short(raw[key])}"
    raise InputError(f"{name}: {setting} is not supported; choose a model of {family} without it")


def undecided(raw: dict[str, Any], family: str) -> dict[str, Any]:
  """The keys of a config that no `ModelConfig` decides. They are kept when the model has changed.

  Args:
    raw: the content of the original's `config.json`.
    family: the `model_type` of the changed model.
  """
  decided = {"architectures", *READ} - {"max_position_embeddings"}
  decided |= {key for key, families in READ_BY.items() if family in families}
  decided |= {key for key in READ_BY if _changes(raw.get(key), NEUTRAL[key])}
  return {key: value for key, value in raw.items() if key not in decided}


def unknown(raw: dict[str, Any]) -> list[str]:
  """The unknown keys, as `key=value`, except those whose value is empty."""
  known = READ | NEUTRAL.keys() | IDLE
  strange = (key for key in sorted(raw.keys() - known) if raw[key] not in (None, False, "", [], {}))
  return [
    f"{key}={_short(raw[key])}"
    for key in strange
    if not key.endswith(IDLE_ENDS) and not key.startswith(IDLE_STARTS)
  ]


def _changes(value: Any, neutral: Any) -> bool:
  if value is None:
    return False
  return bool(value) if neutral is False else value != neutral


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 40 else f"{text[:37]}..."
