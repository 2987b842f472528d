"""A run that starts from the parameters of another run, with its vocabulary."""

import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infini_jax.config import InputError, MeshConfig
from infini_jax.models import abstract_params
from infini_jax.parallel import make_mesh
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training import loop
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.start import check_start, differences, original_params, start_state
from infini_jax.training.trainable import split
from tests.tiny import SYSTEMS, changed, config, fake_params, quiet, write_original


def begin(c, workdir, base, **sections):
  """One step with so small a rate that the parameters do not change."""
  still = {"learning_rate": 1e-12, "gate_learning_rate": 1e-12}
  sections = {"optimizer": still, "train": {"steps": 1, "start_from": str(base)}} | sections
  made = {name: changed(getattr(c, name), **fields) for name, fields in sections.items()}
  return loop.train(changed(c, **made), str(workdir), quiet())


def test_training_begins_with_the_parameters_of_another_run(trained, tmp_path):
  c, workdir, state = trained
  begun = begin(c, tmp_path / "run", workdir)
  close = lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=1e-6)
  jax.tree.map(close, begun.params, state.params)
  assert int(begun.step) == 1, "steps are counted anew"


@pytest.mark.slow
def test_a_run_on_text_goes_on_as_one_on_a_task_in_its_own_tokens(trained, tmp_path):
  c, workdir, state = trained
  task = {"task": {"name": "passkey", "min_segments": 16}}
  data = {"data": {"carry_state": False, "segments": 20}}
  begun = begin(c, tmp_path / "run", workdir, **task, **data)
  close = lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=1e-6)
  jax.tree.map(close, begun.params, state.params)
  saved = (tmp_path / "run" / "tokenizer").iterdir()
  assert {f.name: f.read_bytes() for f in saved} == {
    f.name: f.read_bytes() for f in (workdir / "tokenizer").iterdir()
  }


@pytest.fixture(scope="module")
def original(texts, tmp_path_factory):
  """The config of a run that adapts a converted model, and the parameters of the model."""
  folder = tmp_path_factory.mktemp("original")
  c = config(texts, model={"kv_heads": 1, "gate_init": -5.0}, train={"start_from": str(folder)})
  made = write_original(folder, c)
  return c, fake_params(made.model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gates_and_adapters_that_the_original_lacks_begin_fresh(original, dtype):
  c, params = original
  c = changed(c, model=changed(c.model, lora_rank=2, param_dtype=dtype))
  check_start(c)
  mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
  with jax.set_mesh(mesh):
    abstract = abstract_params(c.model, mesh)
    state = start_state(c, make_optimizer(c), mesh)
  assert jax.tree.map(lambda x: x.sharding, state.params) == jax.tree.map(
    lambda x: x.sharding, abstract
  ), "parameters are restored, but not where they are stored"
  got, expected = flatten_dict(jax.device_get(state.params)), flatten_dict(params)
  for path, x in expected.items():
    np.testing.assert_array_equal(got.pop(path), np.asarray(x, dtype), err_msg=str(path))
  beta = got.pop(("blocks", "attention", "mixer", "beta_H"))
  assert beta.dtype == np.float32 and (beta == -5).all()
  assert all(path[2].startswith("lora_") for path in got) and len(got) == 8
  for path, x in got.items():
    assert np.any(x) == path[3].startswith("down_"), f"{path}: at first nothing must change"


@pytest.mark.parametrize("mixer", SYSTEMS)
def test_every_system_starts_from_a_pretrained_model(original, mixer):
  """Parameters that the original lacks begin fresh. Other missing parameters are refused."""
  c, _ = original
  model = changed(c.model, **{"gate_init": 0.0} | SYSTEMS[mixer])
  carried = changed(c.data, carry_state=mixer != "full")
  check_start(changed(c, model=model, data=carried))
  with pytest.raises(InputError, match="scale_E is missing, this config's"):
    check_start(changed(c, model=changed(model, qk_norm=True), data=carried))


@pytest.mark.parametrize("mixer", ["rmt", "autocompressor"])
def test_summary_embeddings_begin_fresh_and_are_trained(original, mixer):
  c, params = original
  c = changed(c, model=changed(c.model, **SYSTEMS[mixer]))
  mesh = make_mesh(MeshConfig(data=8), jax.devices())
  with jax.set_mesh(mesh):
    state = start_state(c, make_optimizer(c), mesh)
  got, expected = flatten_dict(jax.device_get(state.params)), flatten_dict(params)
  for path, x in expected.items():
    np.testing.assert_array_equal(got.pop(path), x, err_msg=str(path))
  (path,) = got
  assert path == ("summary_PD",) and np.any(got[path])
  for part in ("attention", "lora"):
    trained, _ = split(changed(c, train=changed(c.train, part=part)), state.params)
    assert trained["summary_PD"] is not None, f"frozen in part {part!r}, it would stay random"


def test_parameters_that_are_not_finite_are_refused_by_name(original, tmp_path):
  c, params = original
  folder = shutil.copytree(c.train.start_from, tmp_path / "start")
  shutil.rmtree(folder / "checkpoints")
  bad = jax.device_get(params)
  bad["blocks"]["ffn"]["w_up_DF"] = np.array(bad["blocks"]["ffn"]["w_up_DF"])
  bad["blocks"]["ffn"]["w_up_DF"][1, 2, 3] = 3.4e38  # finite in float32, not in bfloat16
  with Checkpoints(Workdir(folder)) as saved:
    saved.save_params(bad)
  c = changed(c, train=changed(c.train, start_from=str(folder)))
  mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
  with jax.set_mesh(mesh):
    original_params(c, mesh)
    c = changed(c, model=changed(c.model, param_dtype="bfloat16"))
    with pytest.raises(InputError, match="its parameter blocks.ffn.w_up_DF holds .* as bfloat16"):
      original_params(c, mesh)


def test_what_cannot_be_adapted_is_refused(original, adapted):
  c, _ = original
  other = lambda c, section, **fields: changed(
    c, **{section: changed(getattr(c, section), **fields)}
  )
  with pytest.raises(
    InputError, match=r"w_k_DKE is \(2, 16, 1, 8\), this config's \(2, 16, 2, 8\)"
  ):
    check_start(other(c, "model", kv_heads=2))
  with pytest.raises(InputError, match="scale_E is missing, this config's .*: set config.model as"):
    check_start(other(c, "model", qk_norm=True))
  taught = other(c, "train", distill_weight=0.5)
  check_start(other(taught, "model", segment_length=8, compute_dtype="bfloat16"))
  for setting, there in (("rope_theta", "10000.0"), ("norm_eps", "1e-05"), ("embed_scale", "1.0")):
    with pytest.raises(
      InputError, match=f"the original has {{'family.{setting}': {there}}}, and would be"
    ):
      check_start(other(taught, "model", **{setting: 7.0}))
  c, workdir, _ = adapted
  with pytest.raises(InputError, match="has the mixer 'infini' and is not an original to learn"):
    check_start(other(c, "train", start_from=str(workdir)))


def test_settings_that_differ_from_the_starts_are_named(original):
  c, _ = original
  here = changed(c, model=changed(c.model, rope_theta=5e5))
  assert differences(here) == [
    ("model.mixer", "full", "infini"),
    ("family.rope_theta", 10_000.0, 5e5),
  ]


def test_other_shapes_other_tokens_and_no_run_are_refused(trained, tmp_path):
  c, workdir, _ = trained
  with pytest.raises(
    InputError, match=r"w_k_DKE is \(2, 16, 2, 8\), this config's \(2, 32, 2, 8\)"
  ):
    begin(c, tmp_path / "run", workdir, model={"width": 32})
  with pytest.raises(InputError, match="width_base=8: config.train.start_from=.* has 0, and its"):
    begin(c, tmp_path / "run", workdir, model={"width_base": 8})
  with pytest.raises(InputError, match="blocks.attention.mixer.beta_H is .* config's missing"):
    begin(c, tmp_path / "run", workdir, model={"mixer": "local"})
  with pytest.raises(InputError, match="no run there; train one, or make one from pretrained"):
    begin(c, tmp_path / "run", tmp_path / "nothing")
  with pytest.raises(InputError, match="has other tokens than the parameters: prepare it"):
    begin(c, tmp_path / "run", workdir, data={"tokenizer": "train:320"})
  assert not (tmp_path / "run" / "run.json").exists()
