"""The extras of pyproject.toml are locked, and work in a separate environment.

The installation takes minutes and, for gpu and reference, several GB. `make test-extras` tests all
of them; INFINI_JAX_TEST_EXTRAS=tpu,hf selects some.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from infini_jax.data import prepare
from tests import tiny

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = PROJECT["optional-dependencies"]
EXTRAS = [name for name in DECLARED if name != "dev"]
# Extras with an environment of their own, and what they need in other versions than the rest.
OWN = {"beam": {"beartype", "pillow", "protobuf", "pyarrow", "python-dateutil"}}
ASKED = os.environ.get("INFINI_JAX_TEST_EXTRAS", "")


LOCKED = (ROOT / "requirements.lock").read_text()


def pins(file):
  """Names and versions in a lock file; a package may have several, by the version of Python."""
  found = {}
  for name, version in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([\w.+!-]+)", file.read_text(), re.M):
    found.setdefault(name.lower(), []).append(version)
  return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_locked_beside_requirements_lock(extra):
  file = ROOT / "locks" / f"{extra}.lock"
  assert file.is_file(), f"{file.name} is missing: make lock"
  base, added = pins(ROOT / "requirements.lock"), pins(file)
  if extra in OWN:
    differing = {name for name in base.keys() & added.keys() if base[name] != added[name]}
    needed = {Requirement(line).name.lower() for line in PROJECT["dependencies"]}
    assert {name.replace("_", "-") for name in needed} <= added.keys(), "it is complete by itself"
    assert differing <= OWN[extra], "make lock"
  else:
    twice = base.keys() & added.keys()
    windows = {line.partition("==")[0] for line in LOCKED.splitlines() if "== 'win32'" in line}
    assert twice <= windows, "what is locked twice can differ"
    assert all(base[name] == added[name] for name in twice), "make lock"
  for line in DECLARED[extra]:
    want = Requirement(line)
    versions = (base | added).get(want.name.lower())
    assert versions, f"{line} is not locked: make lock"
    assert all(want.specifier.contains(version) for version in versions), f"{line}: make lock"
  text = file.read_text()
  assert text.count("==") == 0 or "--hash=sha256:" in text
  assert "://" not in text and "--index" not in text, "a lock names no place"


def test_every_lock_is_of_an_extra():
  assert sorted(file.stem for file in (ROOT / "locks").iterdir()) == sorted(EXTRAS)


def test_libtpu_is_the_one_that_jax_names():
  """And jax's plugin for GPUs has the version of jax."""
  jax_version = pins(ROOT / "requirements.lock")["jax"]
  (libtpu,) = pins(ROOT / "locks" / "tpu.lock")["libtpu"]
  named = map(Requirement, importlib.metadata.requires("jax"))
  assert next(r for r in named if r.name == "libtpu").specifier.contains(libtpu)
  assert pins(ROOT / "locks" / "gpu.lock")["jax-cuda13-plugin"] == jax_version


# ---- Installed into a clean environment.

SECTIONS = {
  **tiny.RUN,
  "mesh": {},
  "train": {**tiny.RUN["train"], "steps": 2, "tensorboard": True},
}


@pytest.fixture
def job(texts, tmp_path):
  """A tiny config, its texts, and an output folder."""
  sections = {**SECTIONS, "data": {**SECTIONS["data"], "path": str(texts)}}
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  return tmp_path


@pytest.fixture
def installed(request, tmp_path):
  """The interpreter of an environment with a locked extra; removed after the test."""
  extra = request.param
  if not ASKED or (ASKED != "1" and extra not in ASKED.split(",")):
    pytest.skip("installs packages: make test-extras")
  folder = tmp_path / "venv"
  venv.create(folder, with_pip=True, symlinks=True)
  python = folder / "bin" / "python"
  locks = ["requirements.lock"] * (extra not in OWN) + [f"locks/{extra}.lock"]
  files = [f"-r{ROOT / name}" for name in locks]
  pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
  locked = subprocess.run(
    [*pip, "--no-deps", "--require-hashes", *files], text=True, capture_output=True
  )
  if "NewConnectionError" in locked.stderr or "NameResolutionError" in locked.stderr:
    pytest.skip("no package index answers")
  assert locked.returncode == 0, locked.stderr
  source = tmp_path / "source"
  shutil.copytree(ROOT / "infini_jax", source / "infini_jax")
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  own = subprocess.run(
    [*pip, "--no-build-isolation", "--no-deps", str(source)], text=True, capture_output=True
  )
  assert own.returncode == 0, own.stderr
  check = [str(python), "-m", "pip", "check"]  # the locks are whole
  whole = subprocess.run(check, text=True, capture_output=True)
  assert whole.returncode == 0, whole.stdout
  yield python
  shutil.rmtree(folder)


def run(python, *command, cwd, status=0, **more):
  """The output of a command of the environment, without the packages of this process."""
  hidden = ("XLA_FLAGS", "JAX_PLATFORMS", "PYTHONPATH")
  env = {k: v for k, v in os.environ.items() if k not in hidden} | more
  done = subprocess.run(
    [str(python), *command], cwd=cwd, env=env, text=True, capture_output=True, timeout=1800
  )
  assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
  return done.stdout + done.stderr


def only(extra):
  return pytest.mark.parametrize("installed", [extra], indirect=True, ids=[extra])


COMMAND = ("-m", "infini_jax.cli")


@pytest.mark.slow
@only("tpu")
def test_tpu_compiles_a_step(installed, job):
  for topology in ("v5e:2x2", "v4:2x2x1"):
    where = [f"--topology={topology}", "--mesh=fsdp=2,seq=2"]
    said = run(installed, *COMMAND, "plan", "--config=config.py", *where, cwd=job)
    assert "XLA's own peak" in said


@pytest.mark.slow
@only("gpu")
def test_gpu_has_jaxs_plugin_and_plans(installed, job):
  found = "import jax, jax_plugins.xla_cuda13 as p; print(jax.__version__, p.__name__)"
  assert "xla_cuda13" in run(installed, "-c", found, cwd=job)
  where = ("--topology=h100:8", "--mesh=fsdp=8", "--no-compile")
  assert "fits:" in run(installed, *COMMAND, "plan", "--config=config.py", *where, cwd=job)


@pytest.mark.slow
@only("gpu-plan")
def test_gpu_plan_compiles_a_step_without_a_gpu(installed, job):
  where = ("--topology=h100:8", "--mesh=fsdp=8", "--config.run.compute_dtype=bfloat16")
  said = run(installed, *COMMAND, "plan", "--config=config.py", *where, cwd=job)
  assert "XLA's own peak" in said


@pytest.mark.slow
@only("convert")
def test_convert_reads_a_gguf_file(installed, job, rng):
  from tests.convert import gguf_files

  gguf_files.write(job / "model.gguf", rng)
  run(installed, *COMMAND, "convert", "gguf", "model.gguf", "made", cwd=job)
  assert (job / "made" / "run.json").is_file()


@pytest.mark.slow
@only("hf")
def test_hf_reads_a_data_set(installed, job):
  rows = [json.dumps({"text": f"document {i} " * 20}) for i in range(50)]
  (job / "set").mkdir()
  (job / "set" / "train.jsonl").write_text("\n".join(rows))
  prepare = ("prepare", "--source=hf:set", "--out=store", "--workers=1")
  run(installed, *COMMAND, *prepare, cwd=job, HF_HUB_OFFLINE="1")
  assert (job / "store" / "store.json").is_file()


@pytest.mark.slow
@only("beam")
def test_beam_writes_the_store_of_one_machine(installed, job, texts):
  """That of the packages of requirements.lock, by the local runner."""
  given = [f"--source={texts}", "--tokenizer=train:300", "--runner=DirectRunner"]
  run(installed, *COMMAND, "prepare", *given, "--out=made", cwd=job)
  prepare(str(texts), job / "one", "train:300")
  made, one = (
    {file.relative_to(job / out): file.read_bytes() for file in (job / out).rglob("*.*")}
    for out in ("made", "one")
  )
  assert made == one
  cases = ("-m", "pytest", "-q", "-m", "slow", "tests/data/store/test_beam.py")
  assert "2 passed" in run(installed, *cases, cwd=ROOT)


@pytest.mark.slow
@only("eval")
def test_eval_scores_a_run(installed, job):
  run(installed, *COMMAND, "train", "--config=config.py", "--workdir=run", cwd=job)
  (job / "rows.jsonl").write_text('{"text": "A line of text."}\n')
  (job / "own.yaml").write_text(
    "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
    "test_split: test\noutput_type: loglikelihood_rolling\n"
    "doc_to_text: ''\ndoc_to_target: text\nmetric_list: [{metric: bits_per_byte}]\n"
  )
  what = ("lm-eval", "--workdir=run", "--include_path=.", "--tasks=own")
  said = run(installed, *COMMAND, *what, cwd=job, HF_HUB_OFFLINE="1", HF_HOME=str(job / "home"))
  assert "bits_per_byte" in said


@pytest.mark.slow
@only("objects")
def test_objects_copies_in_both_directions(installed, job):
  """With a folder in the place of the store; tests/buckets has a server."""
  (job / "remote" / "bucket").mkdir(parents=True)
  program = """
import obstore
local = obstore.store.LocalStore
obstore.store.from_url = lambda url, **_: local(prefix="remote/bucket")
from infini_jax import buckets
buckets.keep("s3://bucket/a.txt").write_text("kept")
buckets.flush()
"""
  run(installed, "-c", program, cwd=job, XDG_CACHE_HOME=str(job / "cache"))
  assert (job / "remote" / "bucket" / "a.txt").read_text() == "kept"


@pytest.mark.slow
@only("wandb")
def test_wandb_writes_a_run(installed, job):
  train = ("train", "--config=config.py", "--workdir=run", "--config.log.wandb=True")
  run(installed, *COMMAND, *train, cwd=job, WANDB_MODE="offline")
  assert list(job.rglob("*.wandb"))


@pytest.mark.slow
@only("tensorboard")
def test_tensorboard_reads_what_a_run_writes(installed, job):
  run(installed, *COMMAND, "train", "--config=config.py", "--workdir=run", cwd=job)
  look = ("-m", "tensorboard.main", "--inspect", "--logdir=run/tensorboard")
  assert "loss" in run(installed, *look, cwd=job)


@pytest.mark.slow
@only("reference")
def test_reference_is_compared_with(installed):
  cases = (
    "-m",
    "pytest",
    "-q",
    "-m",
    "slow",
    "-k",
    "test_logits_after_import_and_export and llama",
  )
  said = run(installed, *cases, "tests/convert/test_transformers.py", cwd=ROOT)
  assert "passed" in said and "skipped" not in said


@pytest.mark.slow
@only("serve")
def test_serve_answers(installed, job):
  run(installed, *COMMAND, "train", "--config=config.py", "--workdir=run", cwd=job)
  program = """
import json, re, subprocess, sys, urllib.request
command = [sys.executable, "-m", "infini_jax.cli", "serve", "--workdir=run", "--port=0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
  while not (found := re.search("http://[^ ]+", server.stdout.readline().strip())):
    assert server.poll() is None
  body = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
  print(urllib.request.urlopen(f"{found[0]}/v1/completions", body).read().decode())
  server.terminate()
assert server.returncode == 0
"""
  assert "text_completion" in run(installed, "-c", program, cwd=job)


@pytest.mark.slow
@only("docs")
def test_docs_builds_the_reference(installed, tmp_path):
  run(installed, "docs/reference.py", str(tmp_path / "pages"), cwd=ROOT)
  assert (tmp_path / "pages" / "infini_jax" / "inference.html").is_file()


@pytest.mark.slow
@only("notebook")
def test_notebook_runs_the_tour(installed):
  said = run(installed, "-m", "pytest", "-q", "-m", "slow", "tests/test_tour.py", cwd=ROOT)
  assert "1 passed" in said


def test_every_extra_is_tried():
  text = Path(__file__).read_text()
  assert sorted(re.findall(r'@only\("([\w-]+)"\)', text)) == sorted(EXTRAS)
  assert sys.version_info >= (3, 11)
