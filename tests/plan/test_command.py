"""`infini-jax plan`: tables, JSON, and one line for wrong inputs."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from infini_jax import cli
from infini_jax.cli import load_config
from infini_jax.config import InputError, MeshConfig
from infini_jax.parallel.chips import CHIPS
from infini_jax.plan import compiled, gpus
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
SECTIONS = {
  **tiny.RUN,
  "model": {**tiny.RUN["model"], "heads": 4, "kv_heads": 4},
  "run": {"remat": "full"},
  "data": {"path": "nowhere", "lanes": 16, "segments": 4},
  "evaluation": {"lanes": 16, "segments": 4},
  "mesh": {"fsdp": 2, "seq": 2},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("plan") / "config.py"
  path.write_text(tiny.CONFIG_FILE.format(sections=SECTIONS))
  return path


def plan(file, *more):
  return cli.main(["plan", f"--config={file}", *more])


@pytest.mark.parametrize(
  "where, chips",
  [
    (["--mesh=fsdp=4,seq=2", "--chip=v5e"], 8),
    (["--topology=v5p:2x2x2", "--no-compile"], 8),
    (["--topology=h200:8", "--no-compile"], 8),
    (["--topology=h100:2x8", "--no-compile"], 16),
    (["--topology=v5e:2x2", "--mesh=tensor=2", "--no-compile"], 4),
    (["--topology=v5e:2x2", "--no-compile", "--config.mesh.dcn=2"], 8),
  ],
)
def test_an_estimate_in_tables_and_in_json(file, tmp_path, capsys, monkeypatch, where, chips):
  """Fast, without the corpus and without the devices."""
  monkeypatch.setenv("COLUMNS", "160")
  out = tmp_path / "plan.json"
  assert plan(file, *where, f"--json={out}") == 0
  text = capsys.readouterr().out
  for part in ("w_q_DHE", "optimizer", "a chip sends", "interconnect", "MFU: at most", "fits:"):
    assert part in text, f"the report lacks {part!r}"
  made = json.loads(out.read_text())
  assert made["chips"] == chips
  assert made["verdict"]["fits"]
  assert made["parameter_count"] == sum(p["numbers"] for p in made["parameters"])
  assert made["bytes_a_chip"]["total"] == pytest.approx(
    sum(n for name, n in made["bytes_a_chip"].items() if name != "total")
  )
  assert 0 < made["share_of_peak"]["without_overlap"] < made["share_of_peak"]["bound"] < 1
  assert made["tokens_per_step"] == 16 * 4 * 16
  assert {s["network"] for s in made["collectives"]} == (
    {True, False} if "dcn=2" in where[-1] or "2x8" in where[0] else {False}
  )


def test_changes_that_fit_a_too_large_model_are_named(file, tmp_path, capsys, monkeypatch):
  large = [f"--config.model.{name}" for name in ("width=8192", "ffn=16384", "layers=16")]
  out = tmp_path / "plan.json"
  where = ("--topology=v5e:2x2", "--no-compile")
  assert plan(file, *where, f"--json={out}", *large) == 1, "what does not fit ends with 1"
  assert not json.loads(out.read_text())["verdict"]["fits"]
  text = " ".join(capsys.readouterr().out.split())
  assert "does not fit" in text
  assert "most of it: optimizer" in text
  assert "would fit" in text
  monkeypatch.setattr("infini_jax.plan.verdict.MOVES", ())  # the moves take most of the time
  assert plan(file, "--topology=a100:1", "--no-compile", "--mesh=data=1", *large) == 1


def refused(capsys, file, *more):
  assert plan(file, *more) == 2, "a wrong input exits with 2"
  error = capsys.readouterr().err
  assert error.count("\n") == 1, f"want one line, got: {error!r}"
  assert "Traceback" not in error
  return error


def test_wrong_inputs_are_one_line_with_the_remedy(file, capsys, monkeypatch):
  def wrong(*more):
    return refused(capsys, file, *more)

  tpu = ("--topology=v5p:2x2x2", "--no-compile")
  assert "the product must be 8" in wrong(*tpu, "--config.mesh.data=3")
  assert "the product must be 8" in wrong(*tpu, "--mesh=fsdp=16")
  assert "config.data.segments=4 is divided over" in wrong("--mesh=seq=8")
  assert "config.data.segments=3" in wrong(*tpu, "--config.data.segments=3")
  assert "config.model.heads=4" in wrong("--mesh=tensor=8")
  assert "config.model.kv_heads=2" in wrong("--mesh=tensor=4", "--config.model.kv_heads=2")
  assert "give --topology=" in wrong()
  assert "no AXIS=SIZE" in wrong("--mesh=fsdp:4")
  assert "no AXIS=SIZE" in wrong("--mesh=rows=4")
  assert "there are v4, v5e" in wrong("--mesh=fsdp=2", "--chip=v9")
  assert "there are v4, v5e" in wrong("--topology=v9:2x2", "--no-compile")
  assert "there are v4, v5e" in wrong("--topology=b900:8")
  assert "h200:8 or h100:4x8" in wrong("--topology=gpu:h200x8")
  assert "v5p:4x4x4, or GPUs" in wrong("--topology=v5p", "--no-compile")
  assert "leave it out" in wrong(*tpu, "--chip=v5e")
  assert "unknown argument" in wrong(*tpu, "--fast")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert "pip install -e '.[tpu]'" in wrong("--topology=v5p:2x2x2")
  assert "--no-compile" in wrong("--topology=v5p:2x2x2")
  assert "pip install -e '.[gpu-plan]'" in wrong("--topology=h200:8")


@pytest.mark.parametrize(
  "where, remedy",
  [
    ("--topology=v5e:4x4x16", "v5e has no such slice; nearest: v5e:16x16"),
    ("--topology=v6e:2x128", "v6e has no such slice; nearest: v6e:16x16"),
    ("--topology=v5p:8x4x4", "nearest: v5p:4x4x8 "),
    ("--topology=v5p:3x3x3", "nearest: v5p:2x4x4, "),
    ("--topology=v4:4x4", "nearest: v4:2x2x4 "),
    ("--topology=v5e:16x32", "--config.mesh.dcn=COUNT"),
    ("--topology=v5e:0x4", "give a TPU's"),
    ("--topology=v5e:²x2", "give a TPU's"),
    ("--topology=h200:12", "give h200:8 or h200:2x8"),
    ("--topology=h200:16", "give h200:2x8"),
    ("--topology=h200:2x4", "give h200:8"),
    ("--topology=b200:5x5", "give b200:3x8 or b200:4x8"),
    ("--topology=h200:0", "give a TPU's"),
    ("--mesh=dcn=2,fsdp=3", "v5p has no slice of 3 chips; nearest: 2x2x1"),
    ("--mesh=fsdp=4,seq=2,fsdp=2", "fsdp is given twice"),
  ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_impossible_topologies_are_refused_without_libtpu(file, capsys, where, remedy, compiled):
  assert remedy in refused(capsys, file, where, *([] if compiled else ["--no-compile"]))


def test_several_slices_are_each_one_that_exists(file, capsys):
  assert plan(file, "--topology=v5e:2x2", "--no-compile", "--mesh=dcn=3,fsdp=4",
              "--config.data.lanes=12", "--config.evaluation.lanes=12") == 0  # fmt: skip
  assert "12 x v5e (dcn 3 x fsdp 4)" in capsys.readouterr().out


def test_no_change_that_is_named_needs_a_slice_that_does_not_exist(file, capsys):
  """A whole pod has no larger slice, so more chips are not named."""
  large = [f"--config.model.{name}" for name in ("width=65536", "ffn=262144", "layers=64")]
  lanes = ["--config.data.lanes=256", "--config.evaluation.lanes=256"]
  where = ["--topology=v5e:16x16", "--no-compile", "--mesh=fsdp=256"]
  assert plan(file, *where, *large, *lanes) == 1
  assert "chips (now" not in capsys.readouterr().out


@pytest.mark.parametrize(
  "path, remedy",
  [
    ("/proc/plan.json", "takes no files"),
    ("/nowhere/plan.json", "make it first"),
    ("{tmp}", "is a folder"),
    ("{tmp}/new/", "is a folder"),
    ("http://bucket/plan.json", "is a URL"),
    ("", "is empty"),
  ],
)
def test_a_file_that_cannot_be_written_is_found_before_the_work(
  file, tmp_path, capsys, monkeypatch, path, remedy
):
  def never(*_):
    raise AssertionError("it was estimated first")

  monkeypatch.setattr("infini_jax.plan.command.estimate", never)
  monkeypatch.setattr("infini_jax.plan.command.memories", never)
  for what in (["--mesh=fsdp=2"], ["--table=memory"]):
    assert remedy in refused(capsys, file, *what, f"--json={path.format(tmp=tmp_path)}")


@pytest.mark.parametrize("topology", ["v5p:2x2x2", "h100:8"])
def test_an_error_of_the_compiler_is_reported_in_one_line(file, capsys, monkeypatch, topology):
  from jax.experimental import topologies

  def unknown(*_, **__):
    raise RuntimeError('INVALID_ARGUMENT: Topology layout "v5p:2x2x2"\nis not divisible by "4x4x1"')

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(topologies, "get_topology_desc", unknown)
  error = refused(capsys, file, f"--topology={topology}")
  assert "is not divisible" in error
  assert "--no-compile" in error


def test_a_plugin_of_another_version_is_refused_before_compilation(file, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1")
  error = refused(capsys, file, "--topology=h100:8")
  assert f"jax_cuda13_plugin 0.9.1 is installed, and jax is {jax.__version__}" in error
  assert "pip install -e '.[gpu-plan]'" in error


@pytest.mark.parametrize("name", gpus.FACTS)
def test_a_gpu_is_described_by_its_data_sheet(name):
  """Each line of the description is one field, and brackets close."""
  text, chip = gpus.description(name), CHIPS[name]
  assert text.count("{") == text.count("}")
  field = lambda key: re.search(rf"^ *{key}: (.*)$", text, re.M)[1]
  assert float(field("device_memory_size")) == chip.memory
  assert float(field("memory_bandwidth")) == chip.memory_rate
  assert field("device_description_str").strip('"').startswith(chip.kinds[0])
  # The rate of the tensor cores is the data sheet's peak, up to the clock that it assumes.
  facts = gpus.FACTS[name]
  rate = 2 * facts.cores * 4 * facts.products * facts.clock * 1e9
  assert rate == pytest.approx(chip.peak, rel=0.12)


def test_every_gpu_that_can_be_planned_for_can_be_compiled_for():
  assert set(gpus.FACTS) == {name for name, chip in CHIPS.items() if chip.platform == "gpu"}


def test_a_libtpu_of_another_version_is_refused_before_compilation(file, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.999")
  monkeypatch.setattr(
    importlib.metadata, "requires", lambda name: ["libtpu==0.0.42.*; extra=='tpu'"]
  )
  error = refused(capsys, file, "--topology=v5p:2x2x2")
  assert (
    f"libtpu 0.0.999 is installed, and jax {jax.__version__} is made for libtpu==0.0.42.*" in error
  )
  assert "pip install -e '.[tpu]'" in error


def test_a_program_that_cannot_be_read_is_reported_in_one_line(file, monkeypatch):
  """With jax's message for a program of a newer libtpu."""

  class Step:
    def memory_analysis(self):
      raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (x.cc:1)\nasync-update\n")

  class Lowered:
    lower = compile = lambda self, *_: self if _ else Step()

  made = load_config([f"--config={file}", "--config.mesh.data=1"])
  made = dataclasses.replace(made, mesh=MeshConfig(data=1))
  monkeypatch.setattr(jax, "jit", lambda *_, **__: Lowered())
  with pytest.raises(InputError) as caught:
    compiled.compile_step(made, jax.devices()[:1])
  assert "\n" not in str(caught.value)
  assert "RET_CHECK" in str(caught.value)
  assert f"jax {jax.__version__} is made for" in str(caught.value)
  assert "gpu-plan" in compiled.remedy([SimpleNamespace(platform="cuda")])


def test_a_step_that_xla_cannot_allocate_does_not_fit(file, capsys, monkeypatch, tmp_path):
  full = compiled.no_room(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(20.00G) exceeds available HBM (15.75G).",
    seconds=1.0,
  )
  monkeypatch.setattr("infini_jax.plan.command.tpu_devices", lambda *_: [])
  monkeypatch.setattr("infini_jax.plan.command.compile_step", lambda *_: full)
  assert plan(file, "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}") == 1
  assert "does not fit: 20.00 GiB" in " ".join(capsys.readouterr().out.split())
  verdict = json.loads((tmp_path / "plan.json").read_text())["verdict"]
  assert verdict["needed"] == 20 * 2**30
  assert verdict["changes"]


def compiles(file, *more):
  """The command in a process of its own, without the settings of the tests."""
  command = [sys.executable, "-m", "infini_jax.cli", "plan", f"--config={file}", *more]
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=900)


@pytest.mark.slow
def test_a_step_compiled_for_gpus_that_are_not_there(file, tmp_path):
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    pytest.skip("the compiler for GPUs is not installed: pip install '.[gpu-plan]'")
  half = "--config.run.compute_dtype=bfloat16"
  for topology, mesh in (("a100:1", "fsdp=1"), ("b200:2", "tensor=2"), ("h100:2x8", "fsdp=16")):
    done = compiles(file, f"--topology={topology}", f"--mesh={mesh}", half)
    assert done.returncode == 0, f"{topology}: {done.stderr}"
  done = compiles(file, "--topology=h200:4", half, f"--json={tmp_path / 'plan.json'}")
  assert done.returncode == 0, done.stderr
  assert done.stderr == "", "warnings of the plugin are kept from the person"
  made = json.loads((tmp_path / "plan.json").read_text())
  sent = {part["kind"] for part in made["compiled"]["communication"]["parts"]}
  assert {"all-gather", "reduce-scatter"} <= sent
  assert 0 < made["compiled"]["peak"] < made["chip"]["memory"]


@pytest.mark.slow
def test_a_step_compiled_for_a_tpu_that_is_not_there(file, tmp_path):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install '.[tpu]'")

  real = lambda *more: compiles(file, *more)
  for topology, mesh in (("v5e:1x1", "fsdp=1"), ("v4:2x2x1", "fsdp=4"), ("v5p:1x2x1", "fsdp=2")):
    done = real(f"--topology={topology}", f"--mesh={mesh}")
    assert done.returncode == 0, f"{topology}: {done.stderr}"

  done = real("--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}")
  assert done.returncode == 0, done.stderr
  assert done.stderr == "", "libtpu's own warnings are kept from the person"
  made = json.loads((tmp_path / "plan.json").read_text())
  state = sum(made["bytes_a_chip"][k] for k in ("parameters", "optimizer", "memory state"))
  assert made["compiled"]["fits"]
  assert made["compiled"]["arguments"] >= state, "the compiled step holds the state, and a batch"
  assert made["compiled"]["peak"] > state
  assert not made["compiled"]["communication"]["unknown_loops"]
  assert {p["kind"] for p in made["compiled"]["communication"]["parts"]} >= {"all-gather"}
