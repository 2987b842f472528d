"""The tiny experiment of most tests, and its corpus."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from infini_jax import config as config_lib
from infini_jax.config import Config, ModelConfig, SizesConfig
from infini_jax.config.schema import from_sections
from infini_jax.models import param_shapes

LETTERS = np.array(list("abcdefghij klmno pqrs tuvw xyz.\n"))

MODEL = {
  "layers": 2,
  "width": 16,
  "heads": 2,
  "kv_heads": 2,
  "head_dim": 8,
  "ffn": 32,
  "vocab_size": 32,
  "segment_length": 8,
  "remat": "none",
}
RUN: dict[str, dict[str, Any]] = {
  "model": {
    **{k: v for k, v in MODEL.items() if k != "remat"},
    "vocab_size": 264,
    "segment_length": 16,
  },
  "run": {"remat": "none"},
  "data": {"lanes": 8, "segments": 2},
  "optimizer": {"warmup_steps": 2, "learning_rate": 1e-2},
  "train": {"steps": 6, "log_every": 1, "checkpoint_every": 100},
  "log": {"tensorboard": False},
  "evaluation": {"lanes": 8, "segments": 2},
  "mesh": {"data": 1},
}
# The model fields of every memory system, in a small size.
SYSTEMS = {
  "infini": {"mixer": "infini", "rule": "delta"},
  "gated_delta": {"mixer": "gated_delta"},
  "local": {"mixer": "local"},
  "full": {"mixer": "full"},
  "transformer_xl": {"mixer": "transformer_xl"},
  "compressive": {"mixer": "compressive", "compression_rate": 4, "compressed_memory": 6},
  "memorizing": {"mixer": "memorizing", "knn_layers": (2,), "knn_memory": 40, "knn_top": 5},
  "rmt": {"mixer": "rmt", "summary_tokens": 3},
  "autocompressor": {"mixer": "autocompressor", "summary_tokens": 2, "summary_steps": 2},
}


def systems(*fast: str, of: dict[str, Any] = SYSTEMS) -> list[Any]:
  """All systems but `infini`, as parameters of a test; those that are not in `fast` are slow."""
  slow = lambda name: [pytest.mark.slow] * (name not in fast)
  return [pytest.param(name, marks=slow(name)) for name in of if name != "infini"]


# A config file of a user.
CONFIG_FILE = """
from infini_jax.config import base_config

def get_config():
  config = base_config()
  for section, fields in {sections!r}.items():
    for name, value in fields.items():
      config[section][name] = value
  return config
"""


def model_config(**fields) -> ModelConfig:
  """`MODEL` with some fields changed, of any section of the model."""
  return of_model(ModelConfig(), **{**MODEL, **fields})


def of_model(model: ModelConfig, **fields) -> ModelConfig:
  """A model with some fields of any of its sections changed."""
  if "mixer" in fields:
    model = dataclasses.replace(model, mixer=fields.pop("mixer"))
  parts = {"family": model.family, "memory": model.memory, "adapters": model.adapters}
  parts["run"] = model.run
  changes: dict[str, Any] = {}
  for name, value in fields.items():
    if name in parts or name in {f.name for f in dataclasses.fields(SizesConfig)}:
      changes[name] = value
      continue
    found = [
      (part, own)
      for part, section in parts.items()
      for own in (name.removeprefix("lora_") if part == "adapters" else name,)
      if own in {f.name for f in dataclasses.fields(section)}
    ]
    if not found:  # a field of another system
      assert any(hasattr(system, name) for system in config_lib.SYSTEMS.values()), name
      continue
    part, own = found[0]
    changes[part] = dataclasses.replace(changes.get(part, parts[part]), **{own: value})
  return dataclasses.replace(model, **changes)


def patterned(pattern: tuple[str, ...], layers: int, **fields) -> ModelConfig:
  """`MODEL` with these systems in turn; fields of their sections by their names."""
  sections = config_lib.Config(model=model_config(layers=layers)).sections()
  sections["model"] = dataclasses.replace(sections["model"], pattern=pattern)
  made = {
    name: dataclasses.replace(config_lib.SYSTEMS[name](), **fields.pop(name, {}))
    for name in dict.fromkeys(pattern)
  }
  return of_model(from_sections(sections | made).model, **fields)


def config(path: Path | str = "", **sections) -> Config:
  """`RUN` with some fields of some sections changed, checked like a config file.

  All fields of the model's sections may be given together in `model`.
  """
  sections = config_lib.migrated(sections)
  model, own = sections.get("model", {}), sections.get("model", {}).get("mixer", "infini")
  for name, system in config_lib.SYSTEMS.items():  # fields that are newer than the sections
    newer = {f.name: model[f.name] for f in dataclasses.fields(system) if f.name in model}
    if newer and name == own:
      sections[name] = newer | sections.get(name, {})
  newer = {f.name for system in config_lib.SYSTEMS.values() for f in dataclasses.fields(system)}
  sections["model"] = {name: value for name, value in model.items() if name not in newer}
  names = dict.fromkeys((*RUN, "data", *sections))
  merged = {name: {**RUN.get(name, {}), **sections.get(name, {})} for name in names}
  merged["data"].setdefault("path", str(path))
  return config_lib.resolve(merged)


def run_config(model: ModelConfig, **sections) -> Config:
  """The config of a model, with the fields of `RUN` in other sections except those given."""
  return config_lib.resolve(sections, Config(model=model))


def array(x: Any, dtype: Any = None) -> jax.Array:
  """What `jnp.asarray` returns. NumPy converts, because JAX compiles a program for each shape."""
  if isinstance(x, jax.Array):
    return jnp.asarray(x, dtype)
  return jax.device_put(np.asarray(x, dtype))


def fake_params(config: ModelConfig, seed: int = 0):
  """Random parameters with the right shapes and sizes, without compiling `init`."""
  rng = np.random.default_rng(seed)

  def one(path, x):
    name = path[-1].key
    noise = rng.standard_normal(x.shape)
    if name == "scale_E":
      noise = 1 + 0.1 * noise
    elif name != "beta_H":
      noise = noise * config.width**-0.5
    return array(noise, x.dtype)

  return jax.tree_util.tree_map_with_path(one, param_shapes(config))


def changed(base, **fields):
  """A section, a config, or a model with some fields of any of its sections changed."""
  if isinstance(base, ModelConfig):
    return of_model(base, **fields)
  return dataclasses.replace(base, **fields)


def like(rng: np.random.Generator, tree: Any) -> Any:
  """Random arrays with the shapes and types of a tree."""
  return jax.tree.map(lambda x: array(rng.standard_normal(x.shape), x.dtype), tree)


def write_corpus(folder: Path, documents: int = 8, characters: int = 300) -> Path:
  """Documents of different lengths in train/, and two each in validation/ and test/."""
  rng = np.random.default_rng(0)
  for split, count in (("train", documents), ("validation", 2), ("test", 3)):
    (folder / split).mkdir(parents=True)
    for i in range(count):
      size = characters // 2 + int(rng.integers(characters))
      text = "".join(rng.choice(LETTERS, size)) + ("é" if i else "")
      (folder / split / f"{i:02d}.txt").write_text(text, "utf-8")
  return folder


def quiet() -> Console:
  return Console(file=io.StringIO(), width=100)


def write_original(folder: Path, config: Config, tokenizer: Any = None) -> Config:
  """Writes a run of random parameters with full attention, as if converted; returns its config."""
  from infini_jax.data import load_tokenizer
  from infini_jax.runs.checkpoints import Checkpoints
  from infini_jax.runs.workdir import Workdir
  from infini_jax.training.step import TrainState

  made = changed(
    config,
    model=changed(config.model, pattern=(), mixer="full", gate_init=0.0),
    data=changed(config.data, carry_state=False),
    train=changed(config.train, start_from="", part="all", rollout=(), distill_weight=0.0),
    evaluation=changed(config.evaluation, input_tokens=4 * config.model.segment_length),
  )
  workdir = Workdir(folder)
  workdir.claim(made, "converted")
  (tokenizer or load_tokenizer(made.data.tokenizer)).save(workdir.tokenizer)
  saved = Checkpoints(workdir)
  saved.save(0, TrainState(jnp.zeros((), jnp.int32), fake_params(made.model), None, None, None))
  saved.close()
  return made
