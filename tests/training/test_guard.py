"""Bad steps change nothing, are counted, and are left behind if there are too many in a row."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from infini_jax.config import Config, InputError
from infini_jax.runs.metrics import read_metrics
from infini_jax.training import guard, loop
from infini_jax.training.guard import FILE, Hang, PassedOver
from tests.tiny import changed, quiet


def same(a, b):
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))
  jax.tree.map(compare, a, b)


@pytest.fixture
def poison(monkeypatch):
  """A function that gives some batches of training losses that are not finite, or very large."""
  make = loop.train_lanes

  def poisoned(weight_of):
    class Lanes:
      def __init__(self, lanes):
        self._lanes, self.names = lanes, lanes.names

      def batch(self, k, *rows):
        batch = self._lanes.batch(k, *rows)
        weight = np.ones(batch["tokens_BT"].shape, np.float32)
        weight[0] *= weight_of(k)  # the weights of a batch are divided by their sum
        return batch | {"weights_BT": weight}

    monkeypatch.setattr(loop, "train_lanes", lambda *args: Lanes(make(*args)))

  return poisoned


def train(c, workdir, guard=None, **fields):
  console = quiet()
  c = changed(c, train=changed(c.train, **fields), guard=changed(c.guard, **(guard or {})))
  return loop.train(c, str(workdir), console), " ".join(console.file.getvalue().split())


def test_a_bad_step_changes_only_the_count_of_steps(trained, tmp_path, poison):
  c, _, _ = trained
  poison(lambda k: 1.0)
  two, _ = train(c, tmp_path / "two", steps=2)
  poison(lambda k: np.nan if k == 2 else 1.0)
  three, text = train(c, tmp_path / "three", steps=3)
  assert int(three.step) == 3
  same((three.params, three.memory), (two.params, two.memory))
  assert "step 3: skipped: loss nan, gradient norm nan" in text
  assert re.search(r"step 3: skipped: [^;]*(; [^;]*)?; batch 2 of \S+", text), text
  assert [line["step"] for line in read_metrics(tmp_path / "three")] == [1, 2]
  (line,) = read_metrics(tmp_path / "three", "skipped")
  assert line["step"] == 3 and "loss nan" in line["why"]


@pytest.mark.slow
def test_good_steps_after_a_bad_one_go_on_and_a_stop_between_changes_nothing(
  trained, tmp_path, poison
):
  c, _, _ = trained
  poison(lambda k: np.nan if k in (1, 3) else 1.0)
  straight, text = train(c, tmp_path / "straight")
  assert text.count("skipped:") == 2
  assert all(np.isfinite(line["loss"]) for line in read_metrics(tmp_path / "straight"))
  fields = {"checkpoint_every": 1, "keep_checkpoints": 9}
  train(c, tmp_path / "run", **fields)
  kept = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
  assert kept == {1, 3, 5, 6}, "nothing is saved after a bad step"
  for step in (5, 6):  # as if it had been killed after step 3
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  resumed, _ = train(c, tmp_path / "run", **fields)
  same(resumed, straight)


def test_too_many_in_a_row_are_passed_over_and_the_run_resumes_to_the_bit(
  trained, tmp_path, poison
):
  c, _, _ = trained
  poison(lambda k: np.nan if k in (2, 3, 4) else 1.0)
  fields = {"checkpoint_every": 2, "keep_checkpoints": 5}
  state, text = train(c, tmp_path / "run", {"in_a_row": 2}, **fields)
  assert int(state.step) == 6
  # Steps 3 and 4 are bad. The checkpoint of step 2 is the newest; batches 2 to 4 are passed over.
  assert "going back to step 2; batches up to step" in text
  parts = json.loads((tmp_path / "run" / FILE).read_text())
  (part,) = parts
  assert part[0] == 2 and part[1] >= 2
  lines = read_metrics(tmp_path / "run")
  assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
  assert all(np.isfinite(line["loss"]) for line in lines)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been killed before
  again, _ = train(c, tmp_path / "run", {"in_a_row": 2}, **fields)
  same(again, state)


@pytest.mark.slow
def test_a_stop_inside_a_streak_changes_nothing(trained, tmp_path, poison, monkeypatch):
  """The bad steps are repeated, and counted from the first one on."""
  c, _, _ = trained
  poison(lambda k: np.nan if k in (2, 3, 4) else 1.0)
  fields = {"checkpoint_every": 2, "keep_checkpoints": 9}
  straight, text = train(c, tmp_path / "straight", {"in_a_row": 3}, **fields)
  assert "going back to step 2" in text
  reading = loop.train_batches

  def stop_before_the_fifth(lanes, start, stop, *rest):
    for k, batch in enumerate(reading(lanes, start, stop, *rest), start):
      if k == 4:
        os.kill(os.getpid(), signal.SIGTERM)  # steps 3 and 4 are bad
      yield batch

  monkeypatch.setattr(loop, "train_batches", stop_before_the_fifth)
  stopped, text = train(c, tmp_path / "run", {"in_a_row": 3}, **fields)
  assert int(stopped.step) == 4 and "step 4 was bad: no step after 2 is saved" in text
  assert "stopped at step 2, saved in" in text
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
  assert not (tmp_path / "run" / FILE).exists()
  monkeypatch.setattr(loop, "train_batches", reading)
  resumed, _ = train(c, tmp_path / "run", {"in_a_row": 3}, **fields)
  same(resumed, straight)
  files = [tmp_path / run / FILE for run in ("straight", "run")]
  assert files[0].read_text() == files[1].read_text()


@pytest.mark.slow
def test_how_often_training_went_back_is_counted_over_restarts(trained, tmp_path, poison):
  c, _, _ = trained
  poison(lambda k: np.nan if k in (2, 3) or k >= 6 else 1.0)
  guard, fields = {"in_a_row": 2, "returns": 1}, {"checkpoint_every": 2}
  _, text = train(c, tmp_path / "run", guard, **fields, steps=4)
  assert text.count("going back to step") == 1
  with pytest.raises(FloatingPointError, match=r"went back 1 times; .*guard\.returns=1\)$"):
    train(c, tmp_path / "run", guard, **fields, steps=12)


def test_it_stops_with_the_diagnosis_after_it_went_back_often_enough(trained, tmp_path, poison):
  c, _, _ = trained
  poison(lambda k: np.nan if k >= 2 else 1.0)
  with pytest.raises(
    FloatingPointError,
    match=r"2 bad steps in a row, .* went back 1 times; loss nan",
  ):
    train(c, tmp_path / "run", {"in_a_row": 2, "returns": 1}, checkpoint_every=2)
  kept = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
  assert kept and max(kept) <= 4


@pytest.mark.slow
def test_a_gradient_far_above_its_mean_is_skipped(trained, tmp_path, poison):
  c, _, _ = trained
  others = c.data.lanes - 1
  poison(lambda k: 1.0 if k != 3 else 0.01 - others)  # the weights add up to almost 0
  plain, text = train(c, tmp_path / "off", steps=4)
  assert "skipped" not in text
  guarded, text = train(c, tmp_path / "on", {"spike": 3.0, "horizon": 4}, steps=4)
  assert "step 4: skipped: gradient norm" in text and "more than 3 times its mean" in text
  assert float(guarded.norm) > 0
  differ = lambda a, b: not np.array_equal(jax.device_get(a), jax.device_get(b))
  assert any(jax.tree.leaves(jax.tree.map(differ, guarded.params, plain.params)))


def test_the_batch_of_a_step_after_batches_were_passed_over(tmp_path):
  passed = PassedOver(tmp_path)
  assert not passed and [passed.batch_of(k) for k in range(4)] == [0, 1, 2, 3]
  passed.add(2, 5, write=True)  # steps 3, 4, 5 were taken with batches 2, 3, 4
  assert [passed.batch_of(k) for k in range(5)] == [0, 1, 5, 6, 7]
  passed.add(3, 5, write=True)
  assert [passed.batch_of(k) for k in range(5)] == [0, 1, 5, 8, 9]
  again = PassedOver(tmp_path)
  assert [again.batch_of(k) for k in range(5)] == [0, 1, 5, 8, 9]


@pytest.mark.slow
def test_the_time_of_a_run_is_logged_by_kind(trained, tmp_path):
  c, _, _ = trained
  fields = {"checkpoint_every": 2, "eval_every": 3, "eval_documents": 1}
  _, text = train(c, tmp_path / "run", **fields)
  assert re.search(r"goodput \d+%; (\w+ \d+%, )*", text), text
  lines = read_metrics(tmp_path / "run", "goodput")
  assert lines[-1]["step"] == 6
  last = lines[-1]
  parts = ("steps", "start", "compile", "input", "save", "evaluation", "lost")
  assert sum(last[name] for name in parts) == pytest.approx(last["seconds"], rel=0.02)
  assert last["compile"] > 0 and last["evaluation"] > 0 and last["start"] > 0
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been killed before
  train(c, tmp_path / "run", **fields)
  assert read_metrics(tmp_path / "run", "goodput")[-1]["lost"] > 0, "steps 5 and 6 were taken twice"


HANGS = """
import sys
from infini_jax.cli import main
from infini_jax.training import loop

read = loop.train_batches

def stuck(*args):
  import time
  for k, batch in enumerate(read(*args)):
    if k == 2:
      print("stuck", flush=True)
      time.sleep(600)
    yield batch

loop.train_batches = stuck
sys.exit(main(sys.argv[1:]))
"""


def test_a_hang_is_watched_for_by_default_but_not_while_it_rests(monkeypatch):
  assert Config().guard.hang == 3600
  ended = []
  monkeypatch.setattr(guard.processes, "give_up", lambda *args, **how: ended.append(args))
  with Hang(1) as hang:
    hang.alive()
    hang.rest()
    time.sleep(1.5)
    assert not ended
    hang.alive()
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
      time.sleep(0.1)
  assert ended[0][0] == 1 and "was done for 1 s (config.guard.hang)" in ended[0][1]
  with Hang(0) as off:
    off.alive()
    assert all(thread.name != "hang" or not thread.is_alive() for thread in after_a_while())


def after_a_while():
  """The threads, after those that are told to end have had time to."""
  time.sleep(1)
  return threading.enumerate()


@pytest.mark.slow
def test_a_process_without_progress_prints_its_stacks_and_ends(trained, tmp_path):
  c, _, _ = trained
  config = tmp_path / "config.py"
  sections = json.loads(c.to_json())
  sections["guard"] |= {"hang": 3}
  sections["mesh"]["data"] = -1
  config.write_text(
    "from infini_jax.config import base_config\n\n\ndef get_config():\n"
    f"  config = base_config()\n  config.update({sections!r})\n  return config\n"
  )
  command = [sys.executable, "-c", HANGS, "train", f"--config={config}"]
  done = subprocess.run(
    [*command, f"--workdir={tmp_path / 'new'}"], capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 1 and "stuck" in done.stdout, done.stdout + done.stderr
  assert "in stuck" in done.stderr, done.stderr
  last = done.stderr.rstrip().splitlines()[-1]
  assert "was done for 3 s (config.guard.hang)" in last and "newest checkpoint" in last, last


@pytest.mark.slow
def test_a_full_disk_ends_no_training_and_harms_no_checkpoint(trained, tmp_path, monkeypatch):
  c, _, straight = trained
  save, room = loop.Checkpoints.save, {"left": False}

  def full(self, step, state):
    if step == 3 and not room["left"]:
      raise InputError("checkpoints: cannot be written (No space left on device)")
    save(self, step, state)

  monkeypatch.setattr(loop.Checkpoints, "save", full)
  fields = {"checkpoint_every": 1, "keep_checkpoints": 9}
  state, text = train(c, tmp_path / "run", **fields)
  assert text.count("warning: a save failed: ") == 1 and "training continues" in text
  same(state.params, straight.params)
  kept = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
  assert kept == {1, 2, 4, 5, 6}
  with pytest.raises(InputError, match="No space left"):
    train(c, tmp_path / "last", steps=3, **fields)
  kept = {int(p.name) for p in (tmp_path / "last" / "checkpoints").iterdir()}
  assert kept == {1, 2}, "the last good checkpoints are whole"
  room["left"] = True
  state, _ = train(c, tmp_path / "last", **fields)
  same(state.params, straight.params)
