"""Every file in configs/ loads, names its commands, and can be traced at full size on a CPU."""

import dataclasses
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from rich.console import Console

from infini_jax.cli import load_config
from infini_jax.config import SYSTEMS
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.parallel import abstract_batch, check_divisible
from infini_jax.parallel.mesh import AXES
from infini_jax.plan.compiled import example_batch
from infini_jax.tasks import check_length, open_dataset, train_lanes
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, make_train_step

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# Meshes with enough devices for the divisions of the full-size configs.
MESHES = {
  "adapt_smollm": (1, 1, 1, 1, 1),
  "booksum_finetune": (1, 1, 16, 1, 1),
  "chat_smollm": (1, 1, 1, 1, 1),
  "compare": (1, 1, 1, 1, 1),
  "demo": (1, 1, 1, 1, 1),
  "llm_1b": (1, 1, 64, 4, 1),
  "llm_8b": (1, 1, 16, 4, 1),
  "lm_paper": (1, 16, 4, 1, 1),
  "long_100k": (1, 1, 16, 16, 1),
  "million": (1, 1, 1, 64, 1),
  "passkey_finetune": (1, 1, 1, 1, 1),
  "passkey_tiny": (1, 1, 1, 1, 1),
  "recall_tiny": (1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_docstring_says_how_to_run_it_and_what_to_expect(file):
  text = file.read_text()
  for label in ("Command:", "Hardware:", "Time:", "Expect:"):
    assert f"\n{label} " in text, f"{file.name}: the docstring lacks a line '{label} ...'"


# The other configs are slow tests. Golden files have the shardings of all of them.
TRACED = ("adapt_smollm", "llm_1b", "passkey_tiny")


@pytest.mark.parametrize(
  "file",
  [pytest.param(f, marks=[pytest.mark.slow] * (f.stem not in TRACED)) for f in CONFIGS],
  ids=lambda f: f.stem,
)
def test_traces_at_full_size_without_devices(file):
  config = load_config([f"--config={file}"])
  mesh = AbstractMesh(MESHES[file.stem], AXES, axis_types=(AxisType.Explicit,) * len(AXES))
  check_divisible(config, mesh)
  with jax.sharding.use_abstract_mesh(mesh):
    tx = make_optimizer(config)
    state = abstract_state(config, tx, mesh)
    batch = abstract_batch(first_batch(config), mesh)
    after, metrics = jax.eval_shape(make_train_step(config, tx), state, batch)
  assert jax.tree.map(lambda x: x.sharding, after.params) == jax.tree.map(
    lambda x: x.sharding, state.params
  ), "an update changes how parameters are laid out: the next step would compile again"
  assert metrics["loss"].shape == ()
  assert ("answer_accuracy" in metrics) == (config.task.name != "text")


@pytest.mark.parametrize("stage", ["passkey", "laptop", "keys", "text"])
def test_the_other_stages_of_an_adaptation_can_open_their_gates(stage):
  config = load_config([f"--config={ROOT / 'configs/adapt_smollm.py'}:{stage}"])
  travel = config.train.steps * config.optimizer.gate_learning_rate
  assert travel > 2 * -config.model.memory.gate_init, f"gates that can travel {travel} stay shut"


def test_a_stage_of_an_adaptation_has_the_model_that_it_starts_from():
  model = {}
  for stage in ("pretrain", "passkey", "laptop", "far", "keys", "million"):
    config = load_config([f"--config={ROOT / 'configs/adapt_smollm.py'}:{stage}"])
    # A weight in the loss may differ: it changes no parameter, and nothing that is computed.
    memory = dataclasses.replace(config.model.memory, write_penalty=0.0)
    model[stage] = dataclasses.replace(config.model, memory=memory)
  for stage, first in (("passkey", "pretrain"), ("far", "laptop"), ("million", "keys")):
    assert model[stage] == model[first], f"{stage} starts from {first}"


@pytest.mark.slow
def test_every_system_of_the_comparison_traces(comparison=ROOT / "configs/compare.py"):
  """At the same size, on the same batches; only the fields of the memory differ."""
  mesh = AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Explicit,) * len(AXES))
  seen = set()
  for system in runpy.run_path(str(comparison))["SYSTEMS"]:
    config = load_config([f"--config={comparison}:{system}"])
    seen.add((config.model.mixer, getattr(config.model.memory, "rule", "")))
    assert config.data.carry_state == (not config.model.memory.grows)
    with jax.sharding.use_abstract_mesh(mesh):
      tx = make_optimizer(config)
      state = abstract_state(config, tx, mesh)
      batch = abstract_batch(first_batch(config), mesh)
      after, _ = jax.eval_shape(make_train_step(config, tx), state, batch)
    assert jax.tree.map(jnp.shape, after.memory) == jax.tree.map(jnp.shape, state.memory), system
  assert {mixer for mixer, _ in seen} == set(SYSTEMS) and len(seen) == len(SYSTEMS) + 1


def first_batch(config):
  """The first batch of a task; for documents, arrays of its shapes, without a corpus."""
  if config.task.name == "chat":  # with the template of no model
    here = {"path": config.data.path.replace("jsonl:", f"jsonl:{ROOT}/")}
    config = config.with_fields(chat={"template": "plain"}, data=here)
    source = open_dataset(config, Path(), Console(), tokenizer=ByteTokenizer())
    return train_lanes(config, source).batch(0)
  if config.task.name not in ("text", "summarization"):
    of_the_run = ByteTokenizer() if config.data.tokenizer == "run" else None
    source = open_dataset(config, Path(), Console(), tokenizer=of_the_run)
    for length in config.evaluation.lengths:
      check_length(length, source.shortest, "config.evaluation.lengths")
    return train_lanes(config, source).batch(0)
  assert not config.warm.share, "add the arrays of warm memory here"
  return example_batch(config)


def test_the_papers_sizes():
  """Table 1: 1.6M elements of memory; section 4.2: 12 layers, 8 heads of 128."""
  m = load_config([f"--config={ROOT / 'configs/lm_paper.py'}"]).model
  assert m.layers * m.kv_heads * m.head_dim * (m.head_dim + 1) == 1_585_152
  assert (m.layers, m.width, m.heads, m.head_dim, m.ffn, m.segment_length) == (
    *(12, 1024, 8, 128, 4096, 2048),
  )


@pytest.mark.parametrize(
  "file", [f for f in CONFIGS if math.prod(MESHES[f.stem]) > 1], ids=lambda f: f.stem
)
def test_every_device_holds_few_undivided_parameters(file):
  config = load_config([f"--config={file}"])
  sizes = MESHES[file.stem]
  mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
  with jax.sharding.use_abstract_mesh(mesh):
    state = abstract_state(config, make_optimizer(config), mesh)
  whole = [x.size for x in jax.tree.leaves(state.params) if not any(x.sharding.spec)]
  total = sum(x.size for x in jax.tree.leaves(state.params))
  assert sum(whole) <= 0.02 * total, "over 2% of the parameters is on every device"
  largest = max(jax.tree.leaves(state.opt_state), key=lambda x: x.size)
  assert any(largest.sharding.spec), "the optimizer's moments are not divided as parameters are"
