"""A run that was trained on another machine is read, evaluated and trained on this one."""

import dataclasses
import json
import shutil

import jax
import pytest

from infini_jax.config import HOW_TO_RUN, InputError, MeshConfig, RunConfig
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.inference import Session
from infini_jax.models.machine import check_machine, elsewhere, here
from infini_jax.runs.workdir import Workdir
from infini_jax.training.loop import train
from tests.tiny import changed, config, quiet


def recorded(model=(), mesh=()):
  c = config(model={"segment_length": 128, **dict(model)})
  return changed(c, mesh=changed(c.mesh, **dict(mesh)))


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
@pytest.mark.parametrize("mixer", ["infini", "local"])
def test_a_kernel_that_is_not_here_becomes_auto(kernel, mixer):
  said = []
  fitting = here(recorded({"attention": kernel, "mixer": mixer}), said.append)
  assert fitting == recorded({"mixer": mixer}) and len(said) == 1
  assert f"config.run.attention='{kernel}' cannot be used (it needs a" in said[0]
  assert said[0].endswith("auto instead, which computes the same") and "\n" not in said[0]


def test_kernels_of_the_memory_are_not_interpreted():
  said = []
  assert here(recorded({"implementation": "kernels"}), said.append) == recorded()
  assert "config.run.implementation='kernels' cannot be used (a CPU only interprets" in said[0]
  with pytest.raises(InputError, match="choose 'auto' or 'parallel'"):
    check_machine(recorded({"implementation": "kernels"}))


def test_what_can_be_used_stays():
  said = []
  for model in ({"attention": "xla", "remat": "offload", "implementation": "scan"}, {}):
    assert here(recorded(model), said.append) == recorded(model)
  assert not said


def test_a_mesh_of_other_devices_becomes_all_that_are_here():
  said = []
  fitting = here(recorded({"attention": "splash"}, {"data": 64, "tensor": 4}), said.append)
  assert fitting == recorded(mesh={"data": -1}) and fitting.mesh == MeshConfig()
  assert len(said) == 1 and "does not fit 8 devices" in said[0] and "splash" in said[0]
  assert here(recorded(mesh={"data": jax.device_count()}), said.append).mesh.data == 8


@pytest.fixture
def from_a_tpu(trained, tmp_path):
  """A run whose run.json has a TPU's kernel and more devices."""
  _, workdir, _ = trained
  run = shutil.copytree(workdir, tmp_path / "run")
  record = json.loads((run / "run.json").read_text())
  del record["sha256"]  # the edit is wanted
  record["config"]["run"]["attention"] = "splash"
  record["config"]["mesh"] |= {"data": 16, "seq": 4}
  record["config"]["run"]["compilation_cache"] = str(tmp_path / "of_a_tpu" / "programs")
  (run / "run.json").write_text(json.dumps(record))
  return run


def test_such_a_run_writes_and_is_evaluated_alike(trained, from_a_tpu):
  _, workdir, _ = trained
  session = Session.load(from_a_tpu)
  assert session.run.engine.config.model.run.attention == "auto", "the kernel of another machine"
  before = Session.load(workdir)
  for one in (session, before):
    one.read("a text to go on from")
  assert list(session.generate(8, seed=1)) == list(before.generate(8, seed=1))
  c = Workdir(from_a_tpu).config_here()
  assert c.model.run.compilation_cache == "", "a folder of that machine"
  assert c.model.run.attention == "splash" and c.mesh.seq == 4
  said = quiet()
  found = evaluate(c, str(from_a_tpu), said, tasks=("perplexity",))
  assert found["perplexity"]["memory"]["perplexity"] > 1
  text = " ".join(said.file.getvalue().split())
  assert "auto instead, which computes the same" in text


def test_training_is_refused_before_anything_is_written(texts, tmp_path):
  c = config(texts, model={"attention": "splash"})
  with pytest.raises(InputError, match="attention='splash': it needs a TPU, .*choose 'auto' or"):
    check_machine(c)
  with pytest.raises(InputError, match="attention='splash': it needs a TPU"):
    train(c, str(tmp_path / "run"), quiet())
  assert not (tmp_path / "run" / "run.json").exists()


def test_all_of_run_but_the_types_of_numbers_is_of_the_machine():
  own = {"compute_dtype", "param_dtype"}
  assert set(HOW_TO_RUN) == {field.name for field in dataclasses.fields(RunConfig)} - own
  run = dict.fromkeys(own, "bfloat16")
  there = {"remat": "dots", "implementation": "scan", "attention": "xla"}
  there["compilation_cache"] = "/of/that/machine"
  c = elsewhere(recorded(mesh={"data": 8}).with_fields(run={**run, **there}))
  assert c.model.run == RunConfig(**run) and c.mesh == MeshConfig()
