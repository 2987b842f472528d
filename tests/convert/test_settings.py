"""Every setting of a config.json that changes the model is supported, or refused by its name."""

import json

import pytest

from infini_jax.config import InputError
from infini_jax.convert.families import DEFAULTS, positions_of, read_config
from infini_jax.convert.huggingface import convert
from infini_jax.convert.settings import unknown
from tests.convert.golden import HERE, LLAMA3, SIZES
from tests.tiny import quiet

SMALL = {k: v for k, v in SIZES.items() if "token" not in k}
UNPLACED = {k: v for k, v in LLAMA3.items() if k[:8] != "original"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}
FULL, SLIDING = "full_attention", "sliding_attention"


def fields_of(**raw):
  return read_config({**SMALL, **raw}, "config.json")[0]


@pytest.mark.parametrize(
  ("raw", "expected"),
  [
    ({"rope_scaling": {"rope_theta": 300.0, **LINEAR}}, (300.0, (4.0,))),
    ({"rope_scaling": {"rope_theta": 300, **LINEAR}, "rope_theta": 5e5}, (300.0, (4.0,))),
    ({"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 5e5}, (5e5, (4.0,))),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, (7.0, ())),
    ({"rope_parameters": LINEAR, "rope_theta": 9.0}, (9.0, (4.0,))),
    ({"rope_parameters": LINEAR, "rope_scaling": LINEAR}, (1e4, (4.0,))),
    ({"rope_scaling": LLAMA3}, (1e4, (8.0, 1.0, 4.0, 16.0))),
    ({"rope_scaling": UNPLACED}, (1e4, (8.0, 1.0, 4.0, 64.0))),
    (
      {"rope_scaling": UNPLACED, "original_max_position_embeddings": 32},
      (1e4, (8.0, 1.0, 4.0, 32.0)),
    ),
    (
      {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
      (1e4, (8.0, 1.0, 4.0, 32.0)),
    ),
    (
      {"rope_scaling": YARN | {"attention_factor": 1.5, "beta_fast": 8}},
      (1e4, (4.0, 1.0, 8.0, 16.0, 1.5)),
    ),
    ({"partial_rotary_factor": 1.0, "rope_scaling": {}}, (1e4, ())),
  ],
  ids=str,
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_rotary_settings_are_read_from_every_key(family, raw, expected):
  fields = fields_of(model_type=family, **raw)
  assert (fields["rope_theta"], fields["rope_scaling"]) == expected


def test_gemma_3_has_settings_for_each_kind_of_layer():
  nested = {FULL: {"rope_theta": 3e5, **LINEAR}, SLIDING: {"rope_theta": 500.0}}
  fields = fields_of(model_type="gemma3_text", rope_parameters=nested)
  assert (fields["rope_theta"], fields["rope_scaling"], fields["window_theta"]) == (
    *(3e5, (4.0,)),
    500.0,
  )
  fields = fields_of(
    model_type="gemma3_text", rope_scaling={"rope_theta": 3e5, **LINEAR}, rope_local_base_freq=70
  )
  assert (fields["rope_theta"], fields["rope_scaling"], fields["window_theta"]) == (
    *(3e5, (4.0,)),
    70.0,
  )


@pytest.mark.parametrize(
  ("raw", "window", "every"),
  [
    ({"model_type": "mistral", "layer_types": [FULL] * 3}, 0, 0),
    ({"model_type": "mistral", "layer_types": [SLIDING] * 3}, 4, 0),
    ({"model_type": "mistral", "layer_types": [SLIDING, FULL, SLIDING]}, 4, 2),
    ({"model_type": "mistral"}, 4, 0),
    ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, 4, 0),
    ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3}, 0, 0),
    ({"model_type": "qwen3", "max_window_layers": 0}, 0, 0),
    ({"model_type": "gemma2", "layer_types": [FULL] * 3}, 0, 0),
    ({"model_type": "gemma2", "sliding_window_pattern": 2}, 4, 2),
  ],
  ids=str,
)
def test_windows_are_those_of_the_layers(raw, window, every):
  fields = fields_of(sliding_window=4, **raw)
  assert (fields["window"], fields["global_every"]) == (window, every)


REFUSED = [
  ("llama", {"rope_scaling": {"factor": 4.0}}, "rope_scaling: factor=4.0 without a type; add its"),
  ("llama", {"rope_scaling": LINEAR | {"factor": "4"}}, "factor='4': must be a number above 0"),
  ("llama", {"rope_scaling": LINEAR | {"mrope_section": [1]}}, "mrope_section=.1. is not support"),
  ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "type 'longrope' is not supported"),
  ("llama", {"rope_scaling": YARN | {"truncate": False}}, "type 'yarn' is not supported"),
  (
    "llama",
    {"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}},
    "partial_rotary_factor is n",
  ),
  ("llama", {"rope_parameters": {FULL: LINEAR}}, "rope_parameters: full_attention=.* is not sup"),
  ("qwen3", {"rope_parameters": {FULL: LINEAR, SLIDING: LINEAR}}, "full_attention=.* is not supp"),
  (
    "gemma3_text",
    {"rope_scaling": {"type": "linear", "factor": 4}},
    "in this family; write rope_t",
  ),
  ("gemma3_text", {"rope_parameters": LINEAR}, "rope_parameters: factor=4.0 is not supported"),
  ("gemma3_text", {"rope_parameters": {SLIDING: LINEAR}}, "scale windowed layers, which is not"),
  (
    "llama",
    {"rope_parameters": LINEAR, "rope_scaling": LLAMA3},
    "rope_scaling and rope_parameters",
  ),
  ("llama", {"rope_scaling": ["linear"]}, "rope_scaling=.'linear'.: must be an object"),
  ("llama", {"rope_theta": None}, "rope_theta=None: must be a number above 0"),
  ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
  ("mistral", {"layer_types": [FULL, SLIDING, SLIDING]}, "its layer_types do not repeat"),
  ("mistral", {"layer_types": ["chunked_attention"] * 3}, "layer_types has 'chunked_attention'"),
  ("llama", {"layer_types": [SLIDING] * 3}, "layer_types=.* is not supported"),
  ("llama", {"sliding_window": 4}, "sliding_window=4 is not supported"),
  ("smollm3", {"layer_types": [SLIDING] * 3}, "layer_types has 'sliding_attention', but use_slid"),
  ("qwen2", {"layer_types": [SLIDING] * 3}, "layer_types has 'sliding_attention', but use_slid"),
  ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern=3 is not supported"),
  ("gemma2", {"sliding_window": None}, "sliding_window=null is not supported without layer_types"),
  ("mistral", {"sliding_window": 0}, "sliding_window=0: must be a whole number of 1 or more"),
  (
    "llama",
    {"max_position_embeddings": 10**12},
    "embeddings=1000000000000: must be .* at most 214",
  ),
  ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5': must be a number above 0"),
  ("llama", {"rms_norm_eps": -1}, "rms_norm_eps=-1: must be a number above 0"),
  ("llama", {"rope_theta": 10**400}, "int too large to convert to float"),
  ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false': must be true or false"),
  ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window='no': must be true or false"),
  (
    "qwen2",
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "its layers, by max_window_layers, do not repeat",
  ),
  ("gemma2", {"final_logit_softcapping": 0.0}, "softcapping=0.0: must be a number above 0, or nul"),
  ("gemma2", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar=-4: must be a number above 0"),
  ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
  ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
  ("llama", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar=24 is not supported"),
  ("llama", {"attention_multiplier": 0.5}, "attention_multiplier=0.5 is not supported"),
  ("llama", {"is_causal": False}, "is_causal=false is not supported"),
  ("llama", {"no_rope_layers": [1, 1, 0]}, "no_rope_layers=.1, 1, 0. is not supported"),
  ("qwen3", {"attention_chunk_size": 8}, "attention_chunk_size=8 is not supported"),
  ("llama", {"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "per_layer_config=.* is not supp"),
]


@pytest.mark.parametrize(("family", "raw", "said"), REFUSED, ids=str)
def test_unsupported_settings_are_never_ignored(family, raw, said):
  with pytest.raises(InputError, match=said) as error:
    fields_of(model_type=family, **raw)
  assert "\n" not in str(error.value) and str(error.value).startswith("config.json: ")


def test_quantized_weights_around_a_text_part_are_refused():
  text = {**SMALL, "model_type": "gemma3_text"}
  whole = {"model_type": "gemma3", "text_config": text, "quantization_config": {"bits": 4}}
  with pytest.raises(InputError, match="quantization_config .quantized weights. is not supported"):
    read_config(whole, "config.json")


@pytest.mark.parametrize("family", DEFAULTS)
def test_the_longest_text_defaults_to_that_of_the_family(family):
  raw = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
  fields_of(model_type=family)
  assert positions_of({**raw, "model_type": family}) >= 2048


def test_unknown_keys_are_named(tmp_path):
  """transformers reads no such key, but its author may have meant something by it."""
  folder = tmp_path / "model"
  folder.mkdir()
  for file in (HERE / "qwen2").iterdir():
    (folder / file.name).symlink_to(file)
  raw = json.loads((folder / "config.json").read_text()) | {"tilt": 0.5, "off": False, "_x": 1}
  assert unknown(raw) == ["tilt=0.5"]
  (folder / "config.json").unlink()
  (folder / "config.json").write_text(json.dumps(raw))
  said = quiet()
  convert(str(folder), tmp_path / "run", None, said)
  assert "no supported family has tilt=0.5; ignored" in said.file.getvalue()


@pytest.mark.parametrize("name", sorted(f.name for f in HERE.iterdir() if f.is_dir()))
def test_the_keys_of_usual_configs_are_known(name):
  assert not unknown(json.loads((HERE / name / "config.json").read_text()))
