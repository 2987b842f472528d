"""Configs of older versions can be loaded, from run.json and from config files."""

import json

import pytest

from infini_jax.config import Config, InputError, from_json, load_config, resolve

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
