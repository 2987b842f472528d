"""Configs of older versions can be loaded, from run.json and from config files."""

import dataclasses
import json

import pytest

from infini_jax.config import SECTIONS, Config, InputError, from_json, load_config, resolve
from infini_jax.config.migration import MOVED

# The form of 2026-11-28: all fields of a model in one section.
OLD = {
  "model": {
    "mixer": "infini",
    "layers": 3,
    "rule": "delta",
    "gate_init": -5.0,
    "write_gate": True,
    "knn_layers": [9],
    "knn_top": 32,
    "summary_tokens": 50,
    "compression": "conv",
    "rope_theta": 100_000.0,
    "rope_scaling": [8.0],
    "activation": "geglu",
    "tied_embeddings": False,
    "lora_rank": 8,
    "lora_alpha": 32.0,
    "remat": "none",
    "compute_dtype": "bfloat16",
  },
  "task": {"name": "needle", "digits": 6, "family": "facts", "facts": 2, "context_weight": 0.2},
  "data": {"carry_state": False},
  "train": {"steps": 7, "tensorboard": False, "compilation_cache": "programs"},
}

# All fields of these sections, in any version until 2026-11-29.
OLD_FIELDS = {
  "model": "mixer layers width heads kv_heads head_dim ffn vocab_size segment_length rule gate"
  " write_gate gate_init scale_first_segment normalize_keys z_correction decay readout_norm"
  " summary_tokens summary_steps segment_jitter compression compression_rate compressed_memory"
  " knn_layers knn_memory knn_top activation rope_theta rope_scaling norm_eps tied_embeddings"
  " qk_norm attention_bias norm_plus_one post_norms embed_scale query_scale attention_softcap"
  " logit_softcap window global_every global_nope window_theta lora_rank lora_alpha remat"
  " implementation attention compute_dtype param_dtype",
  "task": "name digits late pairs distinct_keys distinct_values span family needles hops facts"
  " filler min_segments curriculum_steps repeat_weight context_weight",
  "train": "steps start_from part rollout rollout_steps distill_weight seed accumulate z_loss"
  " loss_chunk log_every eval_every eval_documents checkpoint_every keep_checkpoints"
  " compilation_cache tensorboard wandb profile_start profile_steps",
}


def check(c: Config):
  m = c.model
  assert (m.mixer, m.layers, m.activation, m.tied_embeddings) == ("infini", 3, "geglu", False)
  assert (m.memory.rule, m.memory.gate_init, m.memory.write_gate) == ("delta", -5.0, True)
  assert (m.family.rope_theta, m.family.rope_scaling) == (100_000.0, (8.0,))
  assert (m.adapters.rank, m.adapters.alpha) == (8, 32.0)
  assert (m.run.remat, m.run.compute_dtype, m.run.compilation_cache) == (
    *("none", "bfloat16"),
    "programs",
  )
  assert (c.needle.family, c.needle.facts, c.needle.digits) == ("facts", 2, 6)
  assert (c.task.name, c.task.context_weight) == ("needle", 0.2)
  assert (c.train.steps, c.log.tensorboard) == (7, False)


def test_an_older_run_json_is_read():
  check(from_json(json.dumps(OLD)))


def test_an_older_config_file_is_read(tmp_path):
  """Converted folders have a config file that reads their run.json."""
  file = tmp_path / "config.py"
  file.write_text(
    "from infini_jax.config import base_config\n"
    "def get_config():\n"
    "  config = base_config()\n"
    f"  config.update({OLD!r})\n"
    "  return config\n"
  )
  c = load_config([f"--config={file}"])
  m = c.model
  assert (m.memory.rule, m.family.rope_theta, m.adapters.rank) == ("delta", 100_000.0, 8)
  assert (c.needle.facts, c.log.tensorboard, m.run.remat) == (2, False, "none")


@pytest.mark.parametrize(
  "mixer,field,value", [("memorizing", "gate", "hard_sigmoid"), ("rmt", "summary_tokens", 3)]
)
def test_older_fields_of_several_systems_go_to_the_chosen_one(mixer, field, value):
  old = {"model": {"mixer": mixer, field: value, "knn_layers": [2], "rule": "delta"}}
  assert getattr(from_json(json.dumps(old)).model.memory, field) == value


def test_a_flag_of_an_older_name_says_todays():
  with pytest.raises(InputError, match=r"config.model.rule is now config.infini.rule: set that"):
    resolve({"model": {"rule": "delta"}})
  with pytest.raises(InputError, match=r"config.train.wandb is now config.log.wandb"):
    resolve({"train": {"wandb": True}})


def test_every_older_field_has_one_place_and_no_newer_field_moves():
  old = {(section, name) for section, names in OLD_FIELDS.items() for name in names.split()}
  today = {
    (section, field.name)
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
  }
  assert set(MOVED) == old - today, "a field that stayed is moved, or one has no place"
  assert set(MOVED.values()) <= today, "a field is moved to a place that does not exist"
