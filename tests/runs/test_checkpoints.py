"""A checkpoint is restored bit by bit on any mesh. A workdir belongs to one run."""

import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError, MeshConfig
from infini_jax.models import abstract_params, bind
from infini_jax.parallel import make_mesh, param_shardings, put_batch
from infini_jax.runs import checkpoints as checkpoints_lib
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir, open_inputs
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import TrainState, abstract_state, initial_state, make_train_step
from tests.tiny import SYSTEMS, array, changed, config, fake_params, quiet, systems


@pytest.fixture(autouse=True)
def settled(monkeypatch):
  """A failed read or write of these small files ends in much less than a second.

  The garbage collection after it does not look at what the tests before left.
  """
  monkeypatch.setattr(checkpoints_lib, "SETTLING", 0.1)
  gc.freeze()
  yield
  gc.unfreeze()


def same(a, b):
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))
  jax.tree.map(compare, a, b)


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (4, 2, 1, 1), (2, 1, 2, 2), (1, 1, 1, 1)], ids=str)
def test_restores_bitwise_on_another_mesh(trained, sizes):
  c, workdir, state = trained
  mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
  with jax.set_mesh(mesh):
    checkpoints = Checkpoints(Workdir(workdir))
    got = checkpoints.restore(6, abstract_state(c, make_optimizer(c), mesh))
    checkpoints.close()
  same(got, state)
  planned = param_shardings(got.params, mesh)
  assert all(
    x.sharding.is_equivalent_to(s, x.ndim)
    for x, s in zip(jax.tree.leaves(got.params), jax.tree.leaves(planned), strict=True)
  ), "parameters are restored, but not where they are stored on this mesh"
  assert np.any(jax.device_get(got.memory.M_BKEU)), "the run has no memory to lose: a weak test"


def test_parameters_alone_and_a_chosen_step(trained):
  c, workdir, state = trained
  mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
  checkpoints = Checkpoints(Workdir(workdir))
  with jax.set_mesh(mesh):
    abstract = abstract_state(c, make_optimizer(c), mesh).params
    newest, step = checkpoints.restore_params(abstract)
    assert step == 6
    same(newest, state.params)
    earlier, step = checkpoints.restore_params(abstract, 3)
    assert step == 3
    assert np.any(jax.device_get(earlier["embed_VD"] != newest["embed_VD"]))
    with pytest.raises(InputError, match="no checkpoint of step 4"):
      checkpoints.restore_params(abstract, 4)
  checkpoints.close()


# tests/training/test_loop.py tests `infini` in float32; `full` has no state between chunks.
RESUMED = {name: model for name, model in SYSTEMS.items() if name not in ("infini", "full")}
RESUMED |= {"pattern": {"pattern": ("infini", "local"), "rule": "delta"}}
RESUMED |= {"bfloat16": {**SYSTEMS["infini"], "param_dtype": "bfloat16"}}


@pytest.mark.parametrize("name", systems("bfloat16", of=RESUMED))
def test_every_system_continues_from_a_checkpoint_as_if_it_had_not_stopped(rng, name, tmp_path):
  """Four steps equal two, a checkpoint on disk, and two more, bit by bit."""
  c = config(model={**RESUMED[name], "vocab_size": 32}, mesh={"data": 2}, data={"lanes": 4})
  mesh, tx = make_mesh(c.mesh, jax.devices()[:2]), make_optimizer(c)
  B, S, N = c.data.lanes, c.data.segments, c.model.segment_length
  checkpoints = Checkpoints(Workdir(tmp_path / "run"))
  with jax.set_mesh(mesh):
    params = jax.device_put(fake_params(c.model), param_shardings(fake_params(c.model), mesh))
    memory = jax.jit(lambda p: bind(c.model, p).state(B))(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(tx.init)(params), memory, None)
    if not jax.tree.leaves(memory):
      state = dataclasses.replace(state, memory=None)
    update, batches = jax.jit(make_train_step(c, tx)), []
    for _ in range(4):
      ids = rng.integers(0, 32, (2, B, S * N)).astype(np.int32)
      batch = {"tokens_BT": ids[0], "targets_BT": ids[1], "mask_BT": np.ones(ids[0].shape, bool)}
      batches.append(put_batch(batch | {"reset_BS": rng.random((B, S)) < 0.2}, mesh, B))
    for step, batch in enumerate(batches, 1):
      state, _ = update(state, batch)
      if step == 2:
        checkpoints.save(2, state)
    resumed = checkpoints.restore(2, abstract_state(c, tx, mesh))
    for batch in batches[2:]:
      resumed, _ = update(resumed, batch)
  checkpoints.close()
  same(resumed, state)
  carried = [np.any(x) for x in jax.tree.leaves(jax.device_get(state.memory))]
  assert any(carried) or name == "local", "nothing is carried: a weak test"


@pytest.mark.slow
def test_a_pattern_is_restored_on_another_mesh_bit_by_bit(tmp_path):
  c = config(model={"pattern": ("infini", "local"), "layers": 4, "write_gate": True})
  checkpoints, states = Checkpoints(Workdir(tmp_path / "run")), []
  for axes in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}):
    mesh, tx = make_mesh(changed(c.mesh, **axes), jax.devices()), make_optimizer(c)
    with jax.set_mesh(mesh):
      if not states:
        states.append(initial_state(c, tx, mesh))
        checkpoints.save(1, states[0])
      else:
        states.append(checkpoints.restore(1, abstract_state(c, tx, mesh)))
  checkpoints.close()
  same(*states)


def test_only_the_newest_are_kept(tmp_path):
  checkpoints = Checkpoints(Workdir(tmp_path / "run"), keep=2)
  for step in (1, 2, 3):
    x = np.full(3, step)
    checkpoints.save(step, TrainState(np.array(step), {"w_D": x}, {"m": x}, None, None))
  zero = np.zeros(3)
  checkpoints.save(3, TrainState(np.array(3), {"w_D": zero}, {"m": zero}, None, None))
  checkpoints.close()
  kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
  assert kept == [2, 3]
  again = Checkpoints(Workdir(tmp_path / "run"))
  params, step = again.restore_params({"w_D": jax.ShapeDtypeStruct((3,), np.int64)})
  again.close()
  assert step == 3
  np.testing.assert_array_equal(params["w_D"], [3, 3, 3], err_msg="a step was saved twice")


def test_saving_changes_nothing_of_how_the_host_program_logs(tmp_path, monkeypatch):
  """Also while saving: only Orbax is silent, and no handler is added."""
  for name in ("", "absl"):
    monkeypatch.setattr(logging.getLogger(name), "handlers", [])
  loggers = [logging.getLogger(name) for name in ("", "absl", "asyncio", "host")]
  state = lambda: [(g.level, [*g.handlers], [*g.filters], g.disabled) for g in loggers]
  heard, said = io.StringIO(), io.StringIO()
  before = state()
  x = {"w_D": np.ones(3)}
  with contextlib.redirect_stderr(said), Checkpoints(Workdir(tmp_path), keep=1) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, TrainState(np.array(step), x, x, None, None))
      logging.getLogger("host").warning("host %d", step)
      absl.logging.error("absl %d", step)
    assert logging.root.manager.disable == 0
    checkpoints.wait()
    assert checkpoints.latest() == 2
  assert state() == before
  assert said.getvalue() == "host 1\nabsl 1\nhost 2\nabsl 2\n"

  handler = logging.StreamHandler(heard)
  monkeypatch.setattr(logging.root, "handlers", [handler])
  level = loggers[1].level
  loggers[1].setLevel(logging.INFO)
  before = state()
  with Checkpoints(Workdir(tmp_path)) as checkpoints:
    checkpoints.restore_params({"w_D": jax.ShapeDtypeStruct((3,), np.float64)})
    absl.logging.info("absl 3")
  after = state()
  loggers[1].setLevel(level)
  assert after == before and heard.getvalue() == "absl 3\n"


def test_an_error_is_not_hidden_by_the_close_that_follows(tmp_path, monkeypatch):
  def full(self):
    raise InputError("the disk is full")

  monkeypatch.setattr(Checkpoints, "close", full)
  with pytest.raises(KeyboardInterrupt), Checkpoints(Workdir(tmp_path)):
    raise KeyboardInterrupt
  with pytest.raises(InputError, match="full"), Checkpoints(Workdir(tmp_path)):
    pass


def test_a_full_disk_is_one_line_and_no_checkpoint(rng, tmp_path, monkeypatch):
  state = lambda: TrainState(np.array(1), {"w_D": rng.standard_normal(400_000)}, None, None, None)
  checkpoints = Checkpoints(Workdir(tmp_path / "run"), keep=1)
  checkpoints.save(1, state())
  checkpoints.close()
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))  # as if the disk ended there
  try:
    with pytest.raises(InputError, match=r"checkpoints: cannot be written \(.*make room") as error:
      checkpoints.save(2, state())
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  assert "\n" not in str(error.value)
  monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3_000_000))
  with pytest.raises(InputError, match="needs 3.2 MB, and 3.0 MB are free; make room there"):
    checkpoints.save(3, state())
  checkpoints.close()
  assert Checkpoints(Workdir(tmp_path / "run")).latest() == 1, "what is not whole was taken for it"


def test_the_newest_step_is_found_without_orbax(trained, monkeypatch):
  """One process looks while the others wait. Orbax's manager opens only when all processes meet."""
  _, workdir, _ = trained

  def meets(self):
    raise AssertionError("the other processes wait, so this would wait for them forever")

  monkeypatch.setattr(Checkpoints, "_open", meets)
  saved = Checkpoints(Workdir(workdir), keep=2)
  assert saved.latest() == saved.newest_whole(print) == saved.chosen() == 6


def test_a_start_that_was_stopped_before_its_vocabulary_was_saved_begins_anew(trained, tmp_path):
  c, workdir, _ = trained
  run = tmp_path / "run"
  (run / "tokenizer").mkdir(parents=True)
  shutil.copy(workdir / "run.json", run)
  (run / "tokenizer" / "tokenizer.bytes.0a1b2c3d.tmp").touch()
  _, source = open_inputs(c, str(run), quiet())
  assert source.tokenizer.fingerprint == json.loads((run / "run.json").read_text())["tokenizer"]
  (run / "checkpoints").mkdir()
  with pytest.raises(InputError, match="holds no saved tokenizer"):
    open_inputs(c, str(run), quiet())


def test_empty_workdir(tmp_path):
  workdir = Workdir(tmp_path / "none")
  assert Checkpoints(workdir).latest() is None
  with pytest.raises(InputError, match="no run here; train first"):
    workdir.config()
  with pytest.raises(InputError, match="no checkpoint"):
    Checkpoints(workdir).restore_params({})
  assert not (tmp_path / "none").exists(), "asking must not make the folder"


def test_a_workdir_belongs_to_one_config_and_one_corpus(tmp_path):
  workdir, c = Workdir(tmp_path / "run"), config("somewhere")
  workdir.claim(c, "corpus-1")
  assert workdir.config() == c
  before = (tmp_path / "run" / "run.json").read_text()
  with pytest.raises(InputError, match="width: 16 there, 32 here.*another --workdir") as error:
    workdir.claim(config("somewhere", model={"width": 32}), "corpus-1")
  assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="another corpus.*config.data.path"):
    workdir.claim(c, "corpus-2")
  assert (tmp_path / "run" / "run.json").read_text() == before
  free = config("elsewhere", train={"steps": 99}, evaluation={"lanes": 16}, mesh={"data": 1})
  workdir.claim(free, "corpus-1")
  assert workdir.config() == free


def test_foreign_and_damaged_folders_are_refused(tmp_path):
  (tmp_path / "a" / "checkpoints").mkdir(parents=True)
  with pytest.raises(InputError, match="no run.json; choose another --workdir"):
    Workdir(tmp_path / "a").check(config("x"))
  (tmp_path / "a" / "run.json").write_text("{")
  with pytest.raises(InputError, match="cannot be read .*choose another --workdir"):
    Workdir(tmp_path / "a").check(config("x"))


def test_one_layer_is_read_without_the_others(rng, tmp_path):
  """Large parameters are stored in pieces of one layer, so an export needs little memory."""
  large = rng.standard_normal((3, 1024, 1024), np.float32)
  state = TrainState(jnp.int32(0), {"blocks": {"w_DF": array(large)}}, None, None, None)
  checkpoints = Checkpoints(Workdir(tmp_path))
  checkpoints.save(0, state)
  checkpoints.close()
  stored = Checkpoints(Workdir(tmp_path)).stored("blocks.w_DF", 0)
  pieces = stored.chunk_layout.read_chunk.shape
  assert pieces[0] == 1, f"pieces of {pieces}: to read one layer, all are read"
  np.testing.assert_array_equal(stored[1].read().result(), large[1])


def test_a_damaged_checkpoint_is_one_line(trained, tmp_path):
  c, workdir, _ = trained
  broken = shutil.copytree(workdir, tmp_path / "run")
  shutil.rmtree(broken / "checkpoints" / "3")
  (broken / "checkpoints" / "6" / "digests.json").unlink()  # as an older program left it
  for file in (broken / "checkpoints" / "6" / "params").rglob("d/*"):
    os.truncate(file, file.stat().st_size // 2)
  command = [
    sys.executable,
    "-m",
    "infini_jax.cli",
    "generate",
    f"--workdir={broken}",
    "--prompt=a",
  ]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
  assert "checkpoints/6: damaged, removed, or of another model" in done.stderr, done.stderr


@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_description_without_digests_is_one_line(trained, tmp_path, left):
  c, workdir, _ = trained
  broken = shutil.copytree(workdir, tmp_path / "run")
  (broken / "checkpoints" / "6" / "digests.json").unlink()  # as an older program left it
  os.truncate(broken / "checkpoints" / "6" / "params" / "_METADATA", left)
  mesh = make_mesh(c.mesh)
  said = pytest.raises(InputError, match="checkpoints/6: damaged, removed")
  with jax.set_mesh(mesh), Checkpoints(Workdir(broken)) as saved, said as raised:
    saved.restore_params(abstract_params(c.model, mesh), 6)
  assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  """A checkpoint of a run that trains attention only, with a moving average of it."""
  c = config(optimizer={"ema": 0.9}, train={"part": "attention"}, model={"param_dtype": "bfloat16"})
  mesh = make_mesh(MeshConfig(1, 2, 2, 2))
  folder = tmp_path_factory.mktemp("averaged")
  with jax.set_mesh(mesh):
    start = initial_state(c, make_optimizer(c), mesh)
    ema = jax.tree.map(lambda x: x + 1, start.ema)
    state = dataclasses.replace(start, ema=ema, step=jnp.array(4, jnp.int32))
    with Checkpoints(Workdir(folder)) as saved:
      saved.save(4, state)
  return c, folder, state


@pytest.mark.parametrize(
  "sizes", [(8, 1, 1, 1), pytest.param((1, 1, 1, 1), marks=pytest.mark.slow)], ids=str
)
def test_a_moving_average_is_restored_and_stands_in_for_what_was_trained(averaged, sizes):
  c, folder, state = averaged
  assert state.ema["embed_VD"] is None, "what is not trained needs no memory"
  mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
  with jax.set_mesh(mesh), Checkpoints(Workdir(folder)) as saved:
    abstract = abstract_state(c, make_optimizer(c), mesh)
    same(saved.restore(4, abstract), state)
    plain, _ = saved.restore_params(abstract.params)
    same(plain, state.params)
    mean, step = saved.restore_params(abstract.params, ema=True)
  assert step == 4
  same(mean["embed_VD"], plain["embed_VD"])
  name = lambda tree: tree["blocks"]["attention"]["w_q_DHE"]
  same(name(mean), array(name(jax.device_get(state.ema)), jnp.bfloat16))
  assert jax.tree.map(lambda x: (x.dtype, x.sharding), mean) == jax.tree.map(
    lambda x: (x.dtype, x.sharding), plain
  )


def test_single_parameters_of_the_average_are_read_and_a_missing_one_is_named(averaged, trained):
  _, folder, state = averaged
  with Checkpoints(Workdir(folder)) as saved:
    read = lambda name, ema: saved.stored(name, 4, ema).read().result()
    attention = "blocks.attention.w_q_DHE"
    same(read(attention, True), state.ema["blocks"]["attention"]["w_q_DHE"])
    same(read(attention, False), state.params["blocks"]["attention"]["w_q_DHE"])
    same(read("embed_VD", True), state.params["embed_VD"])
  with Checkpoints(Workdir(trained[1])) as saved:
    with pytest.raises(InputError, match="6: holds no moving average .* leave --ema out, or train"):
      saved.chosen(ema=True)
