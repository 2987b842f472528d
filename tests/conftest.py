"""Settings of all tests: eight CPU devices, strict types and ranks, checked shapes.

XLA's optimizations are off, because they take most of the time and most programs run once. A
compiled program is kept for other processes and later runs, in the user's cache folder or the
folder INFINI_JAX_TEST_PROGRAMS. INFINI_JAX_TEST_OPTIMIZE=1 leaves the optimizations on; the tests
then run the programs of users, and take five times as long.
"""

import functools
import gc
import os
import re
import tempfile
import time
from pathlib import Path

from tests.compiling import QUICKLY, with_eight_devices

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = with_eight_devices(
  os.environ.get("XLA_FLAGS", ""), "" if os.environ.get("INFINI_JAX_TEST_OPTIMIZE") else QUICKLY
)

import jax
import jaxtyping
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
PROGRAMS, KEPT = "INFINI_JAX_TEST_PROGRAMS", 30 * 24 * 3600  # seconds


def _programs() -> str:
  """A folder for compiled programs, after old ones are removed. JAX names them by their inputs."""
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = Path(base).expanduser() / "infini_jax" / "test-programs"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
      if time.time() - file.stat().st_mtime > KEPT:
        file.unlink(missing_ok=True)
  except OSError:
    return tempfile.mkdtemp(prefix="infini_jax_programs_")
  return str(folder)


if PROGRAMS not in os.environ:  # set by the first process for its child processes
  os.environ[PROGRAMS] = _programs()
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[PROGRAMS]  # of commands that tests start
jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
flags.FLAGS.mark_as_parsed()

# Every annotated shape of the operations is checked in the tests of CHECKED; elsewhere the checks
# would take a fifteenth of the time.
CHECKED = {"ops", "models", "parallel"}
jaxtyping.install_import_hook("infini_jax.ops", "beartype.beartype")
RUNS = "trained|averaged|trained_on_task|adapted|taught"  # fixtures of this file that train


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Gives all files that use a run of this file to one worker, so that each run is made once.

  All other files are divided as `--dist loadfile` does.
  """
  if config.getoption("dist") != "loadfile":
    return None
  from xdist.scheduler import LoadFileScheduling

  uses = re.compile(rf"def \w+\([^)]*\b({RUNS})\b")

  @functools.cache
  def scope(file):
    return "runs" if uses.search((config.rootpath / file).read_text("utf-8")) else file

  class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid):
      return scope(nodeid.split("::")[0])

  return Scheduling(config, log)


@pytest.fixture
def rng(request):
  """Fresh random inputs on every run; a failure prints the seed."""
  seed = int(os.environ.get("INFINI_JAX_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
  print(f"to repeat: INFINI_JAX_TEST_SEED={seed}")
  return np.random.default_rng(seed)


@pytest.fixture(scope="session", autouse=True)
def traced_once():
  """Trainings in one process share the update that they trace, if it is the same function.

  It is the same for configs that differ only in fields that the loop reads, and no update does.
  """
  import dataclasses

  from infini_jax.config import Config
  from infini_jax.training import loop

  of_loop = ("log_every", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_documents")
  usual, make, made = Config(), loop.make_train_step, {}

  def shared(config, tx):
    train = {name: getattr(usual.train, name) for name in of_loop}
    train = dataclasses.replace(config.train, **train)
    same = dataclasses.replace(config, train=train, log=usual.log, evaluation=usual.evaluation)
    if same not in made:
      made[same] = make(config, tx)
    return made[same]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_train_step", shared)
    yield


@pytest.fixture(scope="session", autouse=True)
def one_device():
  """A mesh of size 1 has the first device only: its programs compile in half the time."""
  from infini_jax.models import machine
  from infini_jax.parallel import mesh

  sizes = mesh.mesh_sizes

  def made(config, devices):
    given = tuple(getattr(config, axis) for axis in mesh.AXES)
    return given if set(given) == {1} else sizes(config, devices)

  with pytest.MonkeyPatch.context() as patch:
    for module in (mesh, machine):
      patch.setattr(module, "mesh_sizes", made)
    yield


@pytest.fixture(scope="session", autouse=True)
def one_context():
  """All programs are lowered in one MLIR context. JAX makes one for each, in 5 to 8 ms.

  That is a tenth of the time of the tests, because most programs are small. The name is not
  public; without it each program has its own context again.
  """
  from jax._src.interpreters import mlir

  if not hasattr(mlir, "make_ir_context"):
    yield
    return
  context = mlir.make_ir_context()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mlir, "make_ir_context", lambda: context)
    yield


@pytest.fixture(scope="session", autouse=True)
def not_synced():
  """Files are not forced to the disk: no test cuts the power. test_files.py says when they are."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "fsync", lambda descriptor: None)
    yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
  """A folder of small texts in three splits."""
  from tests.tiny import write_corpus  # not at the top: the hook must be installed before

  return write_corpus(tmp_path_factory.mktemp("texts") / "corpus")


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
  """The folders ORIGINAL and RUN of the example of docs/chat.md, and what its commands print."""
  from tests.test_chat_example import teach

  return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def trained(texts, tmp_path_factory):
  """A finished run of six steps: its config, its workdir, its state."""
  from infini_jax.training.loop import train
  from tests.tiny import config, quiet

  workdir = tmp_path_factory.mktemp("trained") / "run"
  c = config(texts, train={"checkpoint_every": 3}, model={"rule": "delta"})
  with jax.numpy_dtype_promotion("standard"):
    state = train(c, str(workdir), quiet())
  return c, workdir, state


@pytest.fixture(scope="session")
def averaged(trained, tmp_path_factory):
  """The trained run with a moving average beside its parameters: config, workdir, the average."""
  import dataclasses
  import shutil

  import jax.numpy as jnp

  from infini_jax.runs.checkpoints import Checkpoints
  from infini_jax.runs.workdir import Workdir

  c, workdir, state = trained
  folder = shutil.copytree(workdir, tmp_path_factory.mktemp("averaged") / "run")
  shutil.rmtree(folder / "checkpoints")
  ema = jax.tree.map(lambda x: jnp.asarray(0.5 * jax.device_get(x)), state.params)
  with Checkpoints(Workdir(folder)) as saved:
    saved.save(6, dataclasses.replace(state, ema=ema))
  return c, folder, ema


@pytest.fixture(scope="session")
def trained_on_task(tmp_path_factory):
  """A finished run of four steps on passkey examples that start warm, on eight devices: its
  config, its workdir, its state."""
  from infini_jax.training.loop import train
  from tests.tiny import config, quiet

  workdir = tmp_path_factory.mktemp("task") / "run"
  c = config(
    model={"vocab_size": 64},
    data={"tokenizer": "task", "carry_state": False, "segments": 6},
    task={"name": "passkey", "min_segments": 5},
    warm={"share": 0.7, "segments": 2, "min_tokens": 32, "max_tokens": 400, "growth": 1.5},
    train={"steps": 4, "checkpoint_every": 2, "eval_every": 3, "eval_documents": 2},
    evaluation={"lengths": (80, 200), "samples": 3, "knock_out": ("empty", "reads", "layers")},
    mesh={"data": 8},
  )
  with jax.numpy_dtype_promotion("standard"):
    state = train(c, str(workdir), quiet())
  return c, workdir, state


@pytest.fixture(scope="session")
def adapted(texts, tmp_path_factory):
  """A model with full attention, and a run that gave it a memory: config, workdir, state.

  It has two stages of two steps; attention and gates are trained, the original is a teacher.
  """
  from infini_jax.training.loop import train
  from tests.tiny import config, quiet, write_original

  folder = tmp_path_factory.mktemp("adapted")
  c = config(
    texts,
    model={"kv_heads": 1, "gate_init": -5.0},
    train={
      **{"start_from": str(folder / "original"), "part": "attention", "distill_weight": 0.5},
      **{"rollout": (8,), "rollout_steps": 2, "steps": 4, "checkpoint_every": 1},
      "keep_checkpoints": 9,
    },
  )
  write_original(folder / "original", c)
  with jax.numpy_dtype_promotion("standard"):
    state = train(c, str(folder / "run"), quiet())
  return c, folder / "run", state


def pytest_collection_finish():
  """Makes garbage collection rare, and excludes the objects of loaded modules from it.

  With Python's thresholds it takes 8% of the time of the tests: JAX keeps all that it traced.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 10)


def pytest_sessionfinish():
  """Excludes all objects from the ten garbage collections that pytest makes at its end."""
  gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  """Forbids implicit type promotion, except in Optax, which multiplies integers and floats.

  Shapes are checked in the folders `CHECKED`.
  """
  parts = set(item.path.relative_to(item.config.rootpath).parts)
  strict = {"ops", "models", "inference"} & parts
  jaxtyping.config.update("jaxtyping_disable", not CHECKED & parts)
  with jax.numpy_dtype_promotion("strict" if strict else "standard"):
    return (yield)
