"""Mutated configs compared with transformers: the same logits, or a refusal in one line.

Every field of a family's config class is changed, to published values and to wrong ones. Configs
that transformers cannot run are left out.
"""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.convert.families import ARCHITECTURES
from infini_jax.convert.huggingface import read_folder
from infini_jax.convert.layout import entries, nested
from infini_jax.convert.settings import unknown
from infini_jax.models import bind
from tests.convert import golden
from tests.convert.reading import console

pytestmark = pytest.mark.slow
REMEDY = "pip install -e .[reference]"
T = 40  # tokens: longer than every window and than `original_max_position_embeddings`
FULL, SLIDING = "full_attention", "sliding_attention"
CLASSES = {
  **dict(llama="Llama", mistral="Mistral", qwen2="Qwen2", qwen3="Qwen3", smollm3="SmolLM3"),
  **dict(gemma2="Gemma2", gemma3_text="Gemma3Text"),
}
BASES = {
  "smollm3": {"no_rope_layer_interval": 2},
  "mistral": {"sliding_window": 6},
  "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 24},
  "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2},
}
OUTSIDE = {"original_max_position_embeddings": 16}
L3 = {k: v for k, v in golden.LLAMA3.items() if k not in OUTSIDE}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SCALINGS = [
  {"type": "linear", "factor": 4.0},
  {"rope_type": "linear", "factor": 2, "rope_theta": 300.0},
  {"rope_type": "linear", "type": "yarn", "factor": 0.5},
  {"factor": 4.0},
  {"rope_type": "default", "rope_theta": 300.0},
  {"rope_type": "default", "partial_rotary_factor": 0.5},
  {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
  golden.LLAMA3,
  L3,
  L3 | {"rope_theta": 77.0},
  YARN,
  YARN | {"factor": None},
  YARN | {"truncate": False},
  YARN | {"attention_factor": 1.5, "beta_fast": 4, "beta_slow": 0.5},
  YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
  YARN | {"mscale": 0.7},
  YARN | {"rope_theta": 3.0, "original_max_position_embeddings": 4096},
  {"rope_type": "yarn", "factor": 4.0},
  {"rope_type": "dynamic", "factor": 4.0},
  {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
  {"rope_type": "proportional", "partial_rotary_factor": 0.5},
  {FULL: {"rope_type": "linear", "factor": 4.0}, SLIDING: {"rope_theta": 300.0}},
  {FULL: {"rope_theta": 300.0}, SLIDING: {"rope_type": "linear", "factor": 4.0}},
  {FULL: L3, SLIDING: {"rope_type": "default"}},
  {FULL: YARN | {"truncate": False}},
]
ROTARY = [
  *({"rope_scaling": scaling} for scaling in SCALINGS),
  *({"rope_parameters": scaling} for scaling in SCALINGS),
  *({"rope_scaling": s, "rope_theta": 50.0} for s in SCALINGS[:2]),
  *({"rope_scaling": s} | OUTSIDE for s in (L3, golden.LLAMA3, YARN)),
  *({"rope_parameters": s, "original_max_position_embeddings": 32} for s in (L3, YARN)),
  {"rope_scaling": SCALINGS[0], "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}},
  {"rope_scaling": {}, "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}},
  {"rope_theta": 300.0},
  {"rope_theta": 300},
  {"rope_local_base_freq": 300.0},
  {"partial_rotary_factor": 0.5},
  {"original_max_position_embeddings": 16},
  {"max_position_embeddings": 32},
  {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
]
# New values by field. Other fields are changed by their type.
VALUES: dict[str, list] = {
  "num_key_value_heads": [1, 4, None],
  "num_attention_heads": [2],
  "head_dim": [8, None],
  "hidden_size": [16],
  "intermediate_size": [20],
  "num_hidden_layers": [1, 4],
  "vocab_size": [48],
  "hidden_act": ["gelu", "gelu_pytorch_tanh", "relu", "silu"],
  "hidden_activation": ["gelu", "silu", "gelu_pytorch_tanh"],
  "sliding_window": [3, None],
  "layer_types": [
    *([FULL] * 3, [SLIDING] * 3, [SLIDING, FULL, SLIDING], [FULL, SLIDING, SLIDING]),
    *([SLIDING, SLIDING, FULL], ["chunked_attention"] * 3, [FULL] * 2, [FULL] * 4),
  ],
  "max_window_layers": [0, 2],
  "no_rope_layers": [[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1, 0], [1, 0]],
  "no_rope_layer_interval": [1, 3],
  "query_pre_attn_scalar": [4, 16],
  "final_logit_softcapping": [5.0, None],
  "attn_logit_softcapping": [2.0, None],
  "rms_norm_eps": [0.1],
  "dtype": ["bfloat16"],
  "eos_token_id": [[2, 5], None],
  "id2label": [{"0": "a", "1": "b"}],
  "label2id": [{"a": 0, "b": 1}],
  "problem_type": ["regression"],
  "architectures": [None],
}
# Changes of several fields, and of fields without a config class, which `getattr` may read.
MORE = [
  {"use_sliding_window": True, "sliding_window": 4},
  {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
  {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
  {"use_sliding_window": True, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]},
  {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0},
  {"use_sliding_window": False, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]},
  {"sliding_window": None, "layer_types": [FULL] * 3},
  {"sliding_window_pattern": 3},
  {"sliding_window_pattern": 1},
  {"attention_chunk_size": 4},
  {"is_causal": False},
  {"mlp_bias": True},
  {"attention_bias": True},
  {"use_bidirectional_attention": True},
  {"attention_multiplier": 0.5, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
  {"final_logit_softcapping": 5.0},
  {"attn_logit_softcapping": 5.0},
  {"query_pre_attn_scalar": 16},
  {"no_rope_layers": [1, 0, 1]},
  {"no_rope_layer_interval": 2},
  {"per_layer_config": {"1": {"intermediate_size": 20}}},
  {"per_layer_config": {"1": {"rms_norm_eps": 0.5}}},
  {"pretraining_tp": 2},
  {"tie_word_embeddings": True},
  {"tie_word_embeddings": False},
  {"clip_qkv": 0.1},
  {"qk_norm": True},
  {"rope_interleaved": True},
  {"num_experts": 4},
]


@pytest.fixture(autouse=True)
def reference():
  os.environ["HF_HUB_OFFLINE"] = "1"
  pytest.importorskip("torch", reason=REMEDY)
  return pytest.importorskip("transformers", reason=REMEDY)


def fields_of(transformers, family):
  """All fields of a family's config class."""
  kind = getattr(transformers, f"{CLASSES[family]}Config")
  return {f.name: f.default for f in dataclasses.fields(kind)}


def changes_of(field, value):
  """The new values of a field."""
  if field in VALUES:
    return [{field: other} for other in VALUES[field]]
  if isinstance(value, bool):
    return [{field: not value}]
  if isinstance(value, int | float):
    return [{field: value + 1}]
  return []


def mutations(transformers, family):
  made = [
    c for field, value in fields_of(transformers, family).items() for c in changes_of(field, value)
  ]
  rotary = [c for c in ROTARY if set(c) != {"rope_local_base_freq"} or family == "gemma3_text"]
  return [{}, *rotary, *made, *MORE]


def theirs(transformers, folder, raw):
  """The model that transformers makes from a config.json, with random weights; None: it refuses."""
  import torch

  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(raw))
  try:
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    golden.randomize(model.float()).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw))  # the original content
    tokens_BT = np.random.default_rng(0).integers(3, golden.SIZES["vocab_size"], (1, T))
    ones_BT = np.ones((1, T), bool)
    return tokens_BT, golden.reference_logits(golden.load(folder), tokens_BT, ones_BT)
  except Exception as error:  # transformers cannot run this config
    print(f"{raw}: transformers: {type(error).__name__}: {str(error)[:200]}")
    return None


def ours(incoming, tokens_BT):
  """The logits of an imported model, without writing a run."""
  model, flat = incoming.model, {}
  for entry in entries(model):
    layers = [
      entry.from_tensor(incoming.tensor(entry, i)).astype(np.float32)
      for i in range(max(1, entry.layers))
    ]
    flat[entry.parameter] = np.stack(layers) if entry.layers else layers[0]

  def run(params, tokens_BT):
    bound = bind(model, params)
    hidden_BTD, _ = bound(tokens_BT, bound.state(tokens_BT.shape[0]))
    return bound.logits(hidden_BTD)

  return np.asarray(jax.jit(run)(nested(flat), tokens_BT.astype(np.int32)))


def check_one(transformers, folder, family, base, change):
  """The differences from transformers in the reading of a config, one line each."""
  found = theirs(transformers, folder / "model", base | change)
  golden.write_tokenizer(folder / "model")
  try:
    incoming = read_folder(folder / "model", None, console())
  except InputError as error:
    assert "\n" not in str(error), f"{family}, {change}: refused in several lines"
    return f"refused ({str(error).partition(': ')[2]})"
  if found is None:
    return "transformers cannot"
  tokens_BT, want_BTV = found
  worst = np.abs(ours(incoming, tokens_BT) - want_BTV).max()
  return "same" if worst < 1e-4 else f"WRONG by {worst:.1e}"


@pytest.mark.parametrize("family", CLASSES)
def test_every_mutation_is_computed_alike_or_refused(reference, tmp_path, family):
  base = {"model_type": family, **golden.SIZES, **BASES.get(family, {})}
  base["architectures"] = [ARCHITECTURES[family]]
  outcomes = {}
  for i, change in enumerate(mutations(reference, family)):
    if family == "mistral" and "layer_types" in change:
      continue  # transformers reads none for this family; `ministral` below does
    (folder := tmp_path / str(i)).mkdir()
    outcomes[json.dumps(change)] = check_one(reference, folder, family, base, change)
    jax.clear_caches()
  print("\n".join(f"{family}: {change}: {outcome}" for change, outcome in outcomes.items()))
  wrong = {change: outcome for change, outcome in outcomes.items() if outcome[:5] == "WRONG"}
  assert not wrong, f"neither the same nor refused: {wrong}"
  assert outcomes["{}"] == "same", "the base itself must come in"
  assert sum(outcome == "same" for outcome in outcomes.values()) > 20, "too much is refused"


@pytest.mark.parametrize("family", CLASSES)
def test_every_field_of_a_config_class_is_known(reference, family):
  fields = dict.fromkeys(fields_of(reference, family), "set")
  assert not unknown(fields), "transformers may read what is ignored here"


@pytest.mark.parametrize("kinds", VALUES["layer_types"][:5], ids=str)
def test_a_mistral_with_kinds_of_layers_is_a_ministral(reference, tmp_path, kinds):
  """The class that transformers uses if a config of Mistral has `layer_types`."""
  base = {"model_type": "ministral", **golden.SIZES, "sliding_window": 6, "layer_types": kinds}
  found = theirs(reference, tmp_path / "model", base)
  assert found is not None
  as_mistral = base | {"model_type": "mistral"}
  (tmp_path / "model" / "config.json").write_text(json.dumps(as_mistral))
  golden.write_tokenizer(tmp_path / "model")
  try:
    incoming = read_folder(tmp_path / "model", None, console())
  except InputError as error:
    assert "do not repeat" in str(error)
    return
  tokens_BT, want_BTV = found
  assert np.abs(ours(incoming, tokens_BT) - want_BTV).max() < 1e-4
