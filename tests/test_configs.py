"""Every file in configs/ loads, says how to run it, and traces at its full size on a CPU."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from infini_jax.cli import load_config
from infini_jax.parallel import check_divisible
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, make_train_step

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# Enough devices to divide what the full-size configs divide.
MESHES = {"demo": (1, 1, 1), "lm_paper": (16, 4, 1)}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_docstring_says_how_to_run_it_and_what_to_expect(file):
  text = file.read_text()
  for label in ("Command:", "Hardware:", "Time:", "Expect:"):
    assert f"\n{label} " in text, f"{file.name}: the docstring lacks a line '{label} ...'"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_traces_at_full_size_without_devices(file):
  config = load_config([f"--config={file}"])
  mesh = AbstractMesh(
    MESHES[file.stem], ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3
  )
  check_divisible(config, mesh)
  d, N = config.data, config.model.segment_length
  B, T = d.lanes, d.segments * N
  with jax.sharding.use_abstract_mesh(mesh):
    tx = make_optimizer(config)
    state = abstract_state(config, tx, mesh)
    lanes = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
    batch = {
      "tokens_BT": jax.ShapeDtypeStruct((B, T), np.int32, sharding=lanes),
      "targets_BT": jax.ShapeDtypeStruct((B, T), np.int32, sharding=lanes),
      "mask_BT": jax.ShapeDtypeStruct((B, T), bool, sharding=lanes),
      "reset_BS": jax.ShapeDtypeStruct((B, d.segments), bool, sharding=lanes),
    }
    after, metrics = jax.eval_shape(make_train_step(config, tx), state, batch)
  assert jax.tree.map(lambda x: x.sharding, after.params) == jax.tree.map(
    lambda x: x.sharding, state.params
  ), "an update changes how parameters are laid out: the next step would compile again"
  assert metrics["loss"].shape == ()


def test_the_papers_sizes():
  """Table 1: 1.6M elements of memory; section 4.2: 12 layers, 8 heads of 128."""
  m = load_config([f"--config={ROOT / 'configs/lm_paper.py'}"]).model
  assert m.layers * m.kv_heads * m.head_dim * (m.head_dim + 1) == 1_585_152
  assert (m.layers, m.width, m.heads, m.head_dim, m.ffn, m.segment_length) == (
    *(12, 1024, 8, 128, 4096, 2048),
  )
