"""A config.json becomes a model, and a model a config.json. Unsupported ones are refused."""

import json
import math

import pytest

from infini_jax.config import InputError, ModelConfig
from infini_jax.convert.families import fits, read_config, structure, write_config
from tests.convert.golden import HERE, LLAMA3, SIZES
from tests.tiny import of_model

SMALL = {k: v for k, v in SIZES.items() if "token" not in k}


MIXED = {"model_type": "gemma2", "layer_types": ["full_attention"] * 2 + ["sliding_attention"]}


def fields_of(**raw):
  return read_config({**SMALL, **raw}, "config.json")[0]


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
# Configs of older versions of transformers, without keys that do not matter.
OLD = {
  "llama": ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_scaling": (8.0, 1.0, 4.0, 16.0)}),
  "mistral": ({}, {"window": 4096, "global_every": 0, "tied_embeddings": False}),
  "qwen2": (
    {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
    {"window": 0, "attention_bias": True},
  ),
  "qwen3": (
    {"attention_bias": False, "rope_scaling": YARN},
    {"qk_norm": True, "attention_bias": False}
    | {"rope_scaling": (4.0, 1.0, 32.0, 32768.0, 0.1 * math.log(4) + 1)},
  ),
  "smollm3": (
    {"num_hidden_layers": 9, "use_sliding_window": False},
    {"window": 0, "global_every": 4, "global_nope": True, "rope_theta": 2e6},
  ),
  "gemma2": (
    {"hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 4},
    {"window": 4096, "global_every": 2, "attention_softcap": 50.0, "logit_softcap": 30.0}
    | {"query_scale": 0.0, "tied_embeddings": True, "activation": "geglu", "embed_scale": 8**0.5},
  ),
  "gemma3_text": (
    {"num_hidden_layers": 13, "sliding_window": 512, "rope_local_base_freq": 10000}
    | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    {"window": 512, "global_every": 6, "window_theta": 1e4, "rope_theta": 1e6}
    | {"rope_scaling": (8.0,), "query_scale": 256**-0.5, "attention_softcap": 0.0},
  ),
}


@pytest.mark.parametrize("family", OLD)
def test_a_config_becomes_a_model_and_comes_back(family):
  raw, expected = OLD[family]
  fields = fields_of(model_type=family, **raw)
  for name, value in expected.items():
    assert fields[name] == value, f"{family}: {name}"
  model = of_model(ModelConfig(), **fields)
  written = write_config(model, 64)
  assert written["model_type"] == family or family == "mistral" and not model.family.window
  assert fits(written, model), "what is written must describe the same model"
  assert not fits({**written, "hidden_size": 16}, model)


@pytest.mark.parametrize("name", sorted(f.name for f in HERE.iterdir() if f.is_dir()))
def test_current_configs_are_read_and_written_back(name):
  raw = json.loads((HERE / name / "config.json").read_text())
  model = of_model(ModelConfig(), **read_config(raw, name)[0])
  assert fits(json.loads(json.dumps(write_config(model, 64))), model)


def test_the_language_model_of_a_model_with_pictures_is_read():
  text = {**SMALL, "model_type": "gemma3_text", "sliding_window": 6}
  fields, raw = read_config(
    {"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"}, "config.json"
  )
  assert fields["window"] == 6
  assert raw["model_type"] == "gemma3_text" and raw["architectures"] == ["Gemma3ForCausalLM"]


@pytest.mark.parametrize(
  ("raw", "said"),
  [
    ({"model_type": "mixtral"}, "model_type='mixtral' is not supported; llama, mistral"),
    ({}, "model_type=None is not supported"),
    ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, "type 'dynamic' is not support"),
    (
      {"model_type": "smollm3", "no_rope_layers": [0, 1, 1]},
      "its no_rope_layers do not repeat; positions in all layers, or all but every n-th",
    ),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "interval=0: must be a whole"),
    ({"model_type": "smollm3", "use_sliding_window": True}, "use_sliding_window=true is not sup"),
    ({"model_type": "llama", "mlp_bias": True}, "mlp_bias=true is not supported"),
    ({"model_type": "llama", "attention_bias": True}, "attention_bias=true .of o_proj too. is"),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=true .of o_proj too. is"),
    ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantized weights. is not"),
    ({"model_type": "llama", "num_local_experts": 8}, "mixture of experts is not supported"),
    (MIXED, "its layer_types do not repeat"),
    ({"model_type": "llama", "hidden_size": None}, "hidden_size=None: must be a whole number"),
  ],
  ids=str,
)
def test_unsupported_settings_are_named(raw, said):
  with pytest.raises(InputError, match=said) as error:
    fields_of(**raw)
  assert "\n" not in str(error.value) and str(error.value).startswith("config.json: ")


def test_a_missing_setting_is_named():
  raw = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
  with pytest.raises(InputError, match="lacks 'intermediate_size'"):
    read_config({**raw, "model_type": "llama"}, "config.json")


def test_a_model_of_no_family_is_not_exported():
  model = ModelConfig(activation="gelu")
  with pytest.raises(InputError, match="config.model.activation='gelu': a llama model"):
    write_config(model, 64)
  assert structure(model).keys() >= {"window", "rope_scaling", "post_norms", "activation"}
