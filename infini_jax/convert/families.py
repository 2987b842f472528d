"""Model families: from the keys of a `config.json` to the fields of `ModelConfig`, and back."""

import dataclasses
import math
from typing import Any

from infini_jax.config import FamilyConfig, InputError, ModelConfig, SizesConfig
from infini_jax.convert.rope import read_rope, written_scaling
from infini_jax.convert.settings import check_settings, undecided

# The values of the keys that a config.json does not have, by family.
_LLAMA: dict[str, Any] = {
  "num_key_value_heads": None,  # as many as heads
  "head_dim": None,  # width / heads
  "rms_norm_eps": 1e-6,
  "rope_theta": 10_000.0,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
  "sliding_window": None,
  "max_position_embeddings": 2048,
}
_QWEN2 = _LLAMA | {
  "num_key_value_heads": 32,
  "sliding_window": 4096,
  "max_position_embeddings": 32_768,
}
_GEMMA2 = _LLAMA | {
  "num_key_value_heads": 4,
  "head_dim": 256,
  "hidden_act": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "sliding_window": 4096,
  "sliding_window_pattern": 2,
  "query_pre_attn_scalar": 256,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
  "max_position_embeddings": 8192,
}
DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": _LLAMA,
  "mistral": _LLAMA
  | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
  "qwen2": _QWEN2,
  "qwen3": _QWEN2 | {"head_dim": 128},
  "smollm3": _LLAMA
  | {"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True}
  | {"max_position_embeddings": 32_768},
  "gemma2": _GEMMA2,
  "gemma3_text": _GEMMA2
  | {
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "max_position_embeddings": 131_072,
  },
}
# Defaults for the language model of a Gemma 3 that reads pictures. The config.json of the 4B model
# has neither the number of heads nor the size of the vocabulary.
_WITH_PICTURES = {"vocab_size": 262_208, "num_attention_heads": 8}
OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "smollm3": "SmolLM3ForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
}
SIZES = (
  *("vocab_size", "hidden_size", "intermediate_size"),
  *("num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
)
SIZES_OR_NONE = (
  *("num_key_value_heads", "head_dim"),
  *("sliding_window", "sliding_window_pattern", "no_rope_layer_interval"),
)
NUMBERS_OR_NONE = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
SWITCHES = ("tie_word_embeddings", "use_sliding_window")
LARGEST = 2**31 - 1  # the largest size that is accepted
# The fields of a model that no config.json has. A config.json decides OF_SIZES and OF_FAMILY.
OURS = ("mixer", "pattern", "segment_length")
WITH_MEMORY = "infini"  # the model type of `export --memory`, which only transformers reads
FOLDED = ("width_base",)  # `export` multiplies a parameter instead
OF_SIZES = tuple(f.name for f in dataclasses.fields(SizesConfig) if f.name not in OURS + FOLDED)
OF_FAMILY = tuple(f.name for f in dataclasses.fields(FamilyConfig))


def read_config(raw: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the model that a `config.json` describes.

  Args:
    raw: the content of the file.
    name: the name of the file, for error messages.

  Returns:
    The same fields as `structure`, and the config of the language model alone.

  Raises:
    InputError: the architecture or a setting is not supported.
  """
  if raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), dict):
    check_settings(raw, "gemma3_text", name)
    kept = {k: raw[k] for k in OF_THE_WHOLE if k in raw}
    raw = _WITH_PICTURES | kept | raw["text_config"] | {"model_type": "gemma3_text"}
    raw["architectures"] = [ARCHITECTURES["gemma3_text"]]
  family = raw.get("model_type")
  if family == WITH_MEMORY:
    raise InputError(
      f"{name}: model_type={family!r} was written by infini-jax convert export --memory; give the "
      f"run itself, or export it without --memory"
    )
  if not isinstance(family, str) or family not in DEFAULTS:
    raise InputError(f"{name}: model_type={family!r} is not supported; {', '.join(DEFAULTS)} are")
  try:
    _check(raw, family, name)
    fields = _fields(raw, family, name)
    numbers = [x for x in (*fields.values(), *fields["rope_scaling"]) if isinstance(x, float)]
    if not all(map(math.isfinite, numbers)):
      raise ValueError(f"its numbers {numbers} are not all finite")
    return fields, raw
  except KeyError as error:
    raise InputError(f"{name}: lacks {error}; copy or download it again") from None
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{name}: {error}; copy or download it again") from None


def positions_of(raw: dict[str, Any]) -> int:
  """The longest text that a model was trained on, in tokens, from a config of `read_config`."""
  return (DEFAULTS[raw["model_type"]] | raw)["max_position_embeddings"]


def config_of(
  model: ModelConfig, original: dict[str, Any] | None, positions: int
) -> dict[str, Any]:
  """The `config.json` of a model. Keys that the model does not decide are copied from the original.

  Args:
    model: the config of the model.
    original: the config of the original, as `read_config` returned it; None: there is none.
    positions: the longest text that it was trained on, in tokens; used without an original.

  Raises:
    InputError: no family fits this model.
  """
  if original is None:
    return write_config(model, positions)
  if fits(original, model):
    return dict(original)
  written = write_config(model, positions_of(original), original["model_type"])
  kept = undecided(original, written["model_type"])
  return kept | {key: value for key, value in written.items() if key not in kept}


def write_config(model: ModelConfig, positions: int, like: str | None = None) -> dict[str, Any]:
  """The `config.json` of a model, for a family that has all its properties.

  Args:
    model: the config of the model.
    positions: the longest text that it was trained on, in tokens.
    like: the family to try first.

  Raises:
    InputError: no family fits this model.
  """
  for family in [like, _family(model)] if like else [_family(model)]:
    raw = _written(model, positions, family)
    lost = _misfit(raw, model)
    if not lost:
      return raw
  raise InputError(
    f"config.model.{lost}={getattr(model, str(lost))!r}: a {family} model, which this one "
    f"resembles most, cannot have it; export a run that was converted from a pretrained model"
  )


def sizes_of(model: ModelConfig) -> dict[str, int]:
  """The sizes of a model, as in any `config.json`."""
  return {
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "intermediate_size": model.ffn,
    "num_hidden_layers": model.layers,
    "num_attention_heads": model.heads,
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_dim,
  }


def _written(model: ModelConfig, positions: int, family: str) -> dict[str, Any]:
  raw: dict[str, Any] = {
    "architectures": [ARCHITECTURES[family]],
    "model_type": family,
    **sizes_of(model),
    "max_position_embeddings": positions,
    "rms_norm_eps": model.family.norm_eps,
    "rope_theta": model.family.rope_theta,
    "rope_scaling": written_scaling(model.family.rope_scaling),
    "tie_word_embeddings": model.tied_embeddings,
  }
  windowed = [i for i in range(model.layers) if model.family.window and not _is_global(model, i)]
  if family in ("qwen2", "qwen3"):
    raw |= {"use_sliding_window": bool(model.family.window), "max_window_layers": 0}
  if family != "llama":
    unused = DEFAULTS[family]["sliding_window"] if family.startswith("gemma") else None
    raw["sliding_window"] = model.family.window or unused  # transformers needs one for Gemma
  if family not in ("llama", "mistral"):
    kinds = {True: "sliding_attention", False: "full_attention"}
    raw["layer_types"] = [kinds[i in windowed] for i in range(model.layers)]
  if family == "smollm3":
    raw["no_rope_layers"] = [int(not _is_global(model, i)) for i in range(model.layers)]
    raw["pad_token_id"] = None  # the family's default id may be outside a small vocabulary
  if family.startswith("gemma"):
    scale = model.family.query_scale or model.head_dim**-0.5
    raw |= {
      "hidden_act": "gelu_pytorch_tanh",
      "hidden_activation": "gelu_pytorch_tanh",
      "query_pre_attn_scalar": round(scale**-2),
      "attn_logit_softcapping": model.family.attention_softcap or None,
      "final_logit_softcapping": model.family.logit_softcap or None,
    }
  else:
    raw["hidden_act"] = "silu"
  if family == "gemma3_text":
    raw["rope_local_base_freq"] = model.family.window_theta or model.family.rope_theta
    raw["sliding_window_pattern"] = model.family.global_every or model.layers + 1
  return raw


def fits(raw: dict[str, Any], model: ModelConfig) -> bool:
  """Whether a `config.json` describes this model."""
  return not _misfit(raw, model)


def _misfit(raw: dict[str, Any], model: ModelConfig) -> str | None:
  fields, _ = read_config(raw, "config.json")
  return next((name for name, value in structure(model).items() if fields[name] != value), None)


def _fields(raw: dict[str, Any], family: str, name: str) -> dict[str, Any]:
  full = DEFAULTS[family] | raw
  gemma = family.startswith("gemma")
  heads, width = full["num_attention_heads"], full["hidden_size"]
  head_dim = full["head_dim"] or width // heads
  theta, window_theta, scaling = read_rope(full, family == "gemma3_text", name)
  window, global_every = _windows(full, family, name)
  if nope := family == "smollm3":
    global_every = _nope_every(full, name)
  fields = {
    "layers": full["num_hidden_layers"],
    "width": width,
    "heads": heads,
    "kv_heads": full["num_key_value_heads"] or heads,
    "head_dim": head_dim,
    "ffn": full["intermediate_size"],
    "vocab_size": full["vocab_size"],
    "activation": "geglu" if gemma else "swiglu",
    "rope_theta": theta,
    "rope_scaling": scaling,
    "norm_eps": float(full["rms_norm_eps"]),
    "tied_embeddings": bool(full["tie_word_embeddings"]),
    "qk_norm": family in ("qwen3", "gemma3_text"),
    "attention_bias": family == "qwen2",
    "norm_plus_one": gemma,
    "post_norms": gemma,
    "embed_scale": math.sqrt(width) if gemma else 1.0,
    "query_scale": 0.0,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "window": window,
    "global_every": global_every,
    "global_nope": nope and global_every > 0,
    "window_theta": window_theta if window else 0.0,
  }
  if gemma:
    if full["query_pre_attn_scalar"] != head_dim:
      fields["query_scale"] = full["query_pre_attn_scalar"] ** -0.5
    fields["attention_softcap"] = float(full["attn_logit_softcapping"] or 0)
    fields["logit_softcap"] = float(full["final_logit_softcapping"] or 0)
  return fields


def _check(raw: dict[str, Any], family: str, name: str) -> None:
  """Raises InputError for a setting that is wrong or not supported."""
  full = DEFAULTS[family] | raw
  for size in (*SIZES, *(name for name in SIZES_OR_NONE if full.get(name) is not None)):
    if type(full[size]) is not int or not 1 <= full[size] <= LARGEST:
      raise InputError(
        f"{name}: {size}={full[size]!r}: must be a whole number of 1 or more, at most {LARGEST}"
      )
  if not _is_positive(full["rms_norm_eps"]):
    raise InputError(f"{name}: rms_norm_eps={full['rms_norm_eps']!r}: must be a number above 0")
  for switch in SWITCHES:
    if type(full.get(switch, False)) is not bool:
      raise InputError(f"{name}: {switch}={full[switch]!r}: must be true or false")
  for number in NUMBERS_OR_NONE:
    if full.get(number) is not None and not _is_positive(full[number]):
      raise InputError(f"{name}: {number}={full[number]!r}: must be a number above 0, or null")
  act = full.get("hidden_activation") or full["hidden_act"]
  if act != DEFAULTS[family]["hidden_act"]:
    raise InputError(f"{name}: hidden_act={act!r} is not supported; choose a model without it")
  check_settings(raw, family, name)


def _is_positive(number: Any) -> bool:
  return type(number) in (int, float) and 0 < number < math.inf


def _windows(full: dict[str, Any], family: str, name: str) -> tuple[int, int]:
  """The window in tokens, and n: every n-th layer has no window. 0, 0: no layer has one."""
  window, layers = full["sliding_window"], full["num_hidden_layers"]
  by_use = family[:4] == "qwen" and not full.get("use_sliding_window")  # then no window is used
  if (kinds := full.get("layer_types")) is not None and family != "llama":
    if strange := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
      raise InputError(f"{name}: layer_types has {strange[0]!r}, which is not supported")
    windowed = [kind == "sliding_attention" for kind in kinds]
    if len(windowed) != layers and window and not by_use:
      raise ValueError(f"has {len(windowed)} layer_types for {layers} layers")
    if any(windowed) and (by_use or family == "smollm3" or not window):
      raise InputError(
        f"{name}: layer_types has 'sliding_attention', but use_sliding_window or sliding_window "
        f"sets no window; correct one of them"
      )
  elif family[:5] == "gemma" and not window:
    raise InputError(f"{name}: sliding_window=null is not supported without layer_types; add them")
  elif family in ("llama", "smollm3") or not window or by_use:
    return 0, 0
  elif family[:4] == "qwen":
    windowed = [i >= full.get("max_window_layers", 28) for i in range(layers)]
  else:
    every = full.get("sliding_window_pattern") or layers + 1
    windowed = [(i + 1) % every != 0 for i in range(layers)]
  if not any(windowed):
    return 0, 0
  said = "layer_types" if kinds is not None else "layers, by max_window_layers,"
  return window, _every(windowed, f"{name}: its {said}", "windows")


def _nope_every(full: dict[str, Any], name: str) -> int:
  """For SmolLM3, n: every n-th layer has no rotary positions. 0: all layers have them."""
  layers, interval = full["num_hidden_layers"], full.get("no_rope_layer_interval") or 4
  said = full.get("no_rope_layers")
  turned = [(i + 1) % interval for i in range(layers)] if said is None else said[:layers]
  if len(turned) != layers:
    raise ValueError(f"has {len(turned)} no_rope_layers for {layers} layers")
  return _every([bool(kind) for kind in turned], f"{name}: its no_rope_layers", "positions")


def _every(kept: list[bool], which: str, what: str) -> int:
  """n, if exactly every n-th entry of `kept` is False; 0: all are True."""
  every = next((i for i, is_kept in enumerate(kept) if not is_kept), -1) + 1
  if every and kept != [(i + 1) % every != 0 for i in range(len(kept))]:
    raise InputError(
      f"{which} do not repeat; {what} in all layers, or all but every n-th, are supported"
    )
  return every


def _family(model: ModelConfig) -> str:
  if model.family.global_nope:
    return "smollm3"
  if model.family.norm_plus_one:
    return "gemma3_text" if model.family.qk_norm else "gemma2"
  if model.family.qk_norm:
    return "qwen3"
  if model.family.attention_bias:
    return "qwen2"
  return "mistral" if model.family.window else "llama"


def _is_global(model: ModelConfig, layer: int) -> bool:
  return bool(model.family.global_every) and (layer + 1) % model.family.global_every == 0


def structure(model: ModelConfig) -> dict[str, Any]:
  """The fields of a model that a `config.json` decides."""
  sizes = {name: getattr(model, name) for name in OF_SIZES}
  return sizes | {name: getattr(model.family, name) for name in OF_FAMILY}
