"""Stopping and continuing changes nothing, a bad loss damages nothing, everything is logged."""

import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import TrainLanes
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.training import loop
from tests.tiny import changed, config, quiet


def retrain(c, workdir, console=None, **fields):
  console = console or quiet()
  return loop.train(changed(c, train=changed(c.train, **fields)), str(workdir), console)


def last_line(console):
  return console.file.getvalue().splitlines()[-1]


def same(a, b):
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))
  jax.tree.map(compare, a, b)


@pytest.fixture
def batches(monkeypatch):
  """Every batch that the loop reads, in order."""
  seen, read = [], loop.train_batches

  def spy(*args):
    for batch in read(*args):
      seen.append(batch)
      yield batch

  monkeypatch.setattr(loop, "train_batches", spy)
  return seen


def test_six_steps_equal_three_a_stop_and_three_more(trained, tmp_path, batches, monkeypatch):
  """Bit by bit: parameters, moments, memory, and batches."""
  c, _, straight = trained
  reading = loop.train_batches

  def stop_after_three(lanes, start, stop, *rest):
    read = reading(lanes, start, stop, *rest)
    for k in range(start, stop):
      if k == 3:
        signal_stop()  # while the loop waits for data: it stops waiting
      yield next(read)

  signal_stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
  monkeypatch.setattr(loop, "train_batches", stop_after_three)
  out = quiet()
  stopped = retrain(c, tmp_path / "run", out, log_every=10)
  assert int(stopped.step) == 3, "SIGTERM: the last whole step is saved"
  (line,) = read_metrics(tmp_path / "run")
  assert line["step"] == 3, "what is saved is logged"
  assert last_line(out) == (
    f"stopped at step 3, saved in {tmp_path / 'run' / 'checkpoints' / '3'}; "
    f"loss {line['loss']:.4f}; the same command continues from there"
  )
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
  monkeypatch.setattr(loop, "train_batches", reading)
  resumed = retrain(c, tmp_path / "run")
  same(resumed, straight)

  _, store = loop.open_inputs(c, str(tmp_path / "run"), quiet())
  lanes = TrainLanes(
    store.split("train"), bos=store.tokenizer.bos, eos=store.tokenizer.eos, lanes=c.data.lanes,
    segments=c.data.segments, segment_length=c.model.segment_length, seed=c.train.seed,
  )  # fmt: skip
  assert len(batches) == 6
  for k, batch in enumerate(batches):
    same(batch, lanes.batch(k))


@pytest.mark.slow
def test_a_finished_run_continues_on_another_mesh_if_steps_are_added(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  torn = tmp_path / "run" / "checkpoints" / "7.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
  torn.mkdir(parents=True)  # as after a process that was killed while saving
  with open(tmp_path / "run" / "metrics.jsonl", "a") as metrics:
    metrics.write('{"step": 7, "kind": "train"}\n{"step":')
  moved = changed(c, mesh=changed(c.mesh, data=2, fsdp=2, tensor=2))
  state = retrain(moved, tmp_path / "run", steps=8)
  assert int(state.step) == 8
  steps = [line["step"] for line in read_metrics(tmp_path / "run")]
  assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
  kept = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
  assert kept == {"6", "8"}, "a torn checkpoint takes the room of a whole one"


def test_a_finished_run_is_left_as_it_is(trained, tmp_path, monkeypatch):
  c, workdir, straight = trained
  monkeypatch.setattr(loop, "make_train_step", None)  # nothing is compiled
  shutil.copytree(workdir, tmp_path / "run")
  before = (tmp_path / "run" / "run.json").read_text()
  for steps, end in (
    (3, "config.train.steps=3: nothing to do; step 6, saved"),
    (6, "step 6, saved"),
  ):
    console = quiet()
    same(retrain(c, tmp_path / "run", console, steps=steps), straight)
    line = last_line(console)
    assert line.startswith(end) and f"; loss {read_metrics(workdir)[-1]['loss']:.4f}; " in line
    assert line.endswith(f"; next: infini-jax eval --workdir={tmp_path / 'run'}")
  assert (tmp_path / "run" / "run.json").read_text() == before
  out = io.StringIO()
  loop._warn_of_stuck_gates(changed(c, train=changed(c.train, steps=2**31 - 1)), Console(file=out))
  assert not out.getvalue(), "a run without end moves its gates, and asking needs little memory"
  state = loop.train(c, str(tmp_path / "run"), Console(file=out, width=200))
  same(state, straight)
  assert "raise config.optimizer.gate_learning_rate" in out.getvalue(), "6 steps move no gate"
  assert len(read_metrics(tmp_path / "run")) == 6


def test_another_config_is_refused_and_nothing_is_lost(trained):
  c, workdir, _ = trained
  files = lambda: {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  before = files()
  other = changed(c, optimizer=changed(c.optimizer, learning_rate=0.5))
  with pytest.raises(InputError, match="learning_rate: 0.01 there, 0.5 here"):
    loop.train(other, str(workdir), quiet())
  with Workdir(workdir).alone(), pytest.raises(InputError, match="another process is writing it"):
    retrain(c, workdir, steps=9)
  assert files() == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_harms_no_checkpoint(
  trained, tmp_path, monkeypatch
):
  c, _, _ = trained
  c = changed(c, guard=changed(c.guard, in_a_row=0))
  make = loop.make_train_step

  def poisoned(config, tx):
    step = make(config, tx)

    def update(state, batch):
      after, metrics = step(state, batch)
      bad = state.step >= 4
      return after, metrics | {"loss": jax.numpy.where(bad, jax.numpy.nan, metrics["loss"])}

    return update

  monkeypatch.setattr(loop, "make_train_step", poisoned)
  with pytest.raises(
    FloatingPointError, match="^step 5: loss nan.*: lower config.optimizer.learning_rate"
  ):
    retrain(c, tmp_path / "run", checkpoint_every=2)
  kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
  assert kept == [2, 4]
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
  monkeypatch.undo()
  assert int(retrain(c, tmp_path / "run").step) == 6, "the run goes on from the last good step"


def test_metrics_of_a_run(trained):
  c, workdir, _ = trained
  lines = read_metrics(workdir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  for line in lines:
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "step_bytes"):
      assert np.isfinite(line[name]) and line[name] > 0, (name, line)
    assert np.shape(line["gates_LH"]) == (c.model.layers, c.model.heads)
    assert np.sum(line["gate_histogram"], 1).tolist() == [c.model.heads] * c.model.layers
    assert len(line["memory_L"]) == c.model.layers and max(line["memory_L"]) > 0
    assert np.shape(line["readout_max_LK"]) == (c.model.layers, c.model.kv_heads)
    assert line["dead_heads"] == 0 and "answer_accuracy" not in line
  assert lines[-1]["loss"] < lines[0]["loss"]
  np.testing.assert_allclose([line["learning_rate"] for line in lines[:2]], [0.005, 0.01])
  tokens = c.data.lanes * c.data.segments * c.model.segment_length
  assert [line["tokens_seen"] for line in lines] == [tokens * step for step in range(1, 7)]


def test_validation_during_training_and_sparse_logging(trained, tmp_path, monkeypatch):
  c, _, straight = trained
  logged, run = [], loop.Validation.run

  def spy(*args):
    logged.append([line["step"] for line in read_metrics(tmp_path / "run")])
    return run(*args)

  monkeypatch.setattr(loop.Validation, "run", spy)
  fields = {"eval_every": 4, "log_every": 4, "eval_documents": 1}
  c = changed(c, log=changed(c.log, tensorboard=True))
  state = retrain(c, tmp_path / "run", **fields)
  same(state.params, straight.params)
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 6]
  assert logged == [[4], [4, 6]], "a step's tokens/s must not hold the time of the validation"
  scores = read_metrics(tmp_path / "run", "validation")
  assert [line["step"] for line in scores] == [4, 6], "every 4 steps, and at the end"
  assert all(line["documents"] == 1 and line["perplexity"] > 1 for line in scores)
  (events,) = (tmp_path / "run" / "tensorboard").iterdir()
  for layer in range(1, c.model.layers + 1):
    assert f"train/gates_LH/{layer}".encode() in events.read_bytes(), "a histogram per layer"


def test_a_signal_ends_a_validation_and_its_step_is_saved(trained, tmp_path, monkeypatch):
  c, _, _ = trained
  run, chunks = loop.Validation.run, []

  def signalled(self, params, advance):
    def count(*done):
      chunks.append(done)
      if len(chunks) > 1:  # the first has compiled
        os.kill(os.getpid(), signal.SIGTERM)
      advance(*done)

    return run(self, params, count)

  monkeypatch.setattr(loop.Validation, "run", signalled)
  state = retrain(c, tmp_path / "run", eval_every=2, eval_documents=2)
  assert int(state.step) == 2 and len(chunks) == 2, "the chunk under way is the last"
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
  assert not read_metrics(tmp_path / "run", "validation")


def test_profile_and_the_checkpoints_that_are_kept(trained, tmp_path, monkeypatch):
  c, _, straight = trained
  close, killed = loop.Checkpoints.close, []

  def signalled(self):
    if self._manager is not None:  # the last save is in progress
      os.kill(os.getpid(), signal.SIGTERM)
    close(self)

  monkeypatch.setattr(loop.Checkpoints, "close", signalled)
  before = signal.signal(signal.SIGTERM, lambda *_: killed.append(True))
  c = changed(c, log=changed(c.log, profile_start=1, profile_steps=1))
  fields = {"checkpoint_every": 2, "keep_checkpoints": 1}
  same(retrain(c, tmp_path / "run", **fields).params, straight.params)
  signal.signal(signal.SIGTERM, before)
  assert not killed, "a SIGTERM while the last checkpoint is written would have lost it"
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["6"]
  assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb")), "no profile was written"


def test_a_vocabulary_too_small_is_refused(trained, tmp_path):
  c, _, _ = trained
  small = changed(c, model=changed(c.model, vocab_size=100))
  with pytest.raises(InputError, match=r"vocab_size=100 is smaller.*set it to \d+ or more"):
    loop.train(small, str(tmp_path / "run"), quiet())
  assert not (tmp_path / "run" / "run.json").exists()


def test_a_validation_without_documents_is_refused_before_anything_is_compiled(tmp_path):
  (tmp_path / "train.jsonl").write_text('{"text": "abc abc abc abc abc abc abc"}\n' * 3)
  c = config(f"jsonl:{tmp_path / 'train.jsonl'}", train={"eval_every": 2})
  with pytest.raises(InputError, match=r"split is empty.*set config.train.eval_every=0"):
    loop.train(c, str(tmp_path / "run"), quiet())
  assert not (tmp_path / "run" / "run.json").exists()


def test_run_json_holds_the_config_for_a_reader(trained):
  c, workdir, _ = trained
  assert json.loads((workdir / "run.json").read_text())["config"] == json.loads(c.to_json())


def test_a_task_with_warm_memory_goes_on_as_if_it_had_never_stopped(trained_on_task, tmp_path):
  """Bit by bit: parameters, moments, and the companions."""
  c, workdir, straight = trained_on_task
  assert straight.memory is None and np.any(jax.device_get(straight.warm.M_BKEU))
  shutil.copytree(workdir, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  same(retrain(c, tmp_path / "run"), straight)


def test_metrics_of_a_task(trained_on_task):
  c, workdir, _ = trained_on_task
  lines = read_metrics(workdir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert all(0 <= line["answer_accuracy"] <= 1 for line in lines)
  scores = read_metrics(workdir, "validation")
  assert [line["step"] for line in scores] == [3, 4]
  # Two held-out examples of the length of a chunk, at each depth.
  tokens = c.data.segments * c.model.segment_length * 2 * len(c.evaluation.depths)
  assert all(line["tokens"] == tokens and 0 <= line["exact_match"] <= 1 for line in scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "lion"])
def test_another_optimizer_and_an_average_go_on_to_the_bit_on_a_mesh(texts, tmp_path, name):
  c = config(
    texts,
    optimizer={"name": name, "ema": 0.7, "schedule": "wsd", "decay_steps": 2},
    weight_decay={"embeddings": 0.0, "gates": 0.5},
    train={"steps": 4, "checkpoint_every": 2},
    mesh={"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
  )
  straight = retrain(c, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if it had been killed before
  same(retrain(c, tmp_path / "run"), straight)
  where = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
  assert where(straight.ema) == where(straight.params), "divided like the parameters"
