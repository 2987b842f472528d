"""A branch of a run equals, to the bit, a run that was planned like it from the start."""

import json
import shutil

import jax
import numpy as np
import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.metrics import read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.training import guard, loop
from infini_jax.training.branch import FILE, Branch, begin_branch, branch_of
from tests.tiny import changed, config, quiet

SHAPE = {"decay_shape": "sqrt", "final_fraction": 0.3}


def planned(c, steps, **optimizer):
  return changed(
    c, train=changed(c.train, steps=steps), optimizer=changed(c.optimizer, **optimizer)
  )


def train(c, workdir, branch=None):
  return loop.train(c, str(workdir), quiet(), branch)


def same(a, b):
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))
  jax.tree.map(compare, a, b)


@pytest.fixture(scope="module")
def stable(texts, tmp_path_factory):
  """A run of eight steps whose rate is constant after its warm-up; its moments, memory, average."""
  c = config(
    texts,
    optimizer={"schedule": "constant", "ema": 0.5, "final_fraction": 0.3},
    train={"steps": 8, "checkpoint_every": 2, "keep_checkpoints": 9},
  )
  workdir = tmp_path_factory.mktemp("stable") / "run"
  train(c, workdir)
  return c, workdir


@pytest.mark.slow
def test_a_decay_from_a_stable_checkpoint_equals_the_run_that_was_planned_so(stable, tmp_path):
  c, workdir = stable
  decays = planned(c, 7, schedule="wsd", decay_steps=3, **SHAPE)
  straight = train(decays, tmp_path / "straight")
  branched = train(decays, tmp_path / "branch", Branch(str(workdir), 4))
  same(branched, straight)
  assert int(branched.step) == 7
  rates = lambda where: [line["learning_rate"] for line in read_metrics(where)]
  assert rates(tmp_path / "branch") == rates(tmp_path / "straight"), "also of the steps before"
  peak = c.optimizer.learning_rate
  assert rates(workdir)[2:] == [np.float32(peak)] * 6 and rates(tmp_path / "branch")[-1] < peak / 2
  assert json.loads((tmp_path / "branch" / FILE).read_text()) == {"run": str(workdir), "step": 4}


@pytest.mark.slow
def test_a_branch_that_is_stopped_goes_on_with_the_same_command(stable, tmp_path):
  c, workdir = stable
  decays = planned(c, 6, schedule="wsd", decay_steps=2, **SHAPE)
  branch = Branch(str(workdir), 4)
  whole = train(decays, tmp_path / "run", branch)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been killed before
  same(train(decays, tmp_path / "run", branch), whole)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
  same(train(decays, tmp_path / "run"), whole)
  with pytest.raises(InputError, match=r"holds a branch of .*run, step 4; name a new folder"):
    train(decays, tmp_path / "run", Branch(str(workdir), 2))
  with pytest.raises(InputError, match="holds no branch; name a new folder"):
    train(decays, workdir, branch)


def test_a_branch_keeps_its_place_in_the_data(stable, tmp_path):
  """Batches that the run passed over before the checkpoint stay passed over; later ones do not."""
  c, workdir = stable
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / guard.FILE).write_text("[[2, 3], [6, 1]]")
  loop.begin_branch(planned(c, 9), str(tmp_path / "run"), Branch(str(copy), 4))
  assert json.loads((tmp_path / "run" / guard.FILE).read_text()) == [[2, 3]]
  assert guard.PassedOver(tmp_path / "run").batch_of(4) == 7
  with Checkpoints(Workdir(tmp_path / "run")) as saved:
    assert saved.latest() == 4
  assert {p.name for p in (tmp_path / "run").iterdir()} == {
    *("branch.json", "checkpoints", "metrics.jsonl", "passed_over.json", "run.json", "store"),
    "tokenizer",
  }


def test_without_a_step_a_branch_begins_at_the_newest(stable, tmp_path):
  c, workdir = stable
  loop.begin_branch(planned(c, 9), str(tmp_path / "run"), Branch(str(workdir)))
  assert json.loads((tmp_path / "run" / FILE).read_text())["step"] == 8


def test_what_cannot_branch_is_refused_and_leaves_nothing(stable, trained, tmp_path):
  c, workdir = stable
  wsd = planned(c, 7, schedule="wsd", decay_steps=3, **SHAPE)
  run, ended = str(workdir), trained[0]
  for config_, branch, message in (
    (wsd, Branch(str(tmp_path / "none")), "no run here"),
    (wsd, Branch(run, 5), "no checkpoint of step 5; choose one of 2, 4, 6, 8"),
    (wsd, Branch(run, 6), r"at step 4, before step 6 of .*: set config.train.steps=7 to 9 or m"),
    (planned(wsd, 9, schedule="cosine", decay_steps=0), Branch(run, 6), "set it to 'wsd', and con"),
    (planned(wsd, 7, b1=0.5), Branch(run, 4), r"decay \(config.optimizer.b1: 0.9 there, 0.5 here"),
    (planned(wsd, 7, ema=0.6), Branch(run, 4), "config.optimizer.ema: 0.5 there, 0.6 here"),
    (ended, Branch(str(trained[1]), 3), "rates up to step 3 .* decay from step 2 on; choose a ch"),
  ):
    with pytest.raises(InputError, match=message):
      train(config_, tmp_path / "new", branch)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()
  with pytest.raises(InputError, match=r"--step=3 without --branch=RUN: .*; leave it out"):
    branch_of(None, 3)
  assert branch_of(None, None) is None


def test_a_folder_takes_one_branch(stable, tmp_path):
  c, workdir = stable
  here, of_four = tmp_path / "run", Branch(str(workdir), 4)
  here.mkdir()
  begin_branch(c, str(here), of_four)
  content = {"run": str(workdir), "step": 4}
  assert json.loads((here / FILE).read_text()) == content
  kept = {file.name for file in here.iterdir()}
  begin_branch(c, str(here), of_four)
  begin_branch(c, str(here), Branch(str(workdir), None))
  assert {file.name for file in here.iterdir()} == kept, "it is begun already"
  for other, said in (
    (content | {"step": 2}, f"holds a branch of {workdir}, step 2; name a new folder"),
    (content | {"run": "/another"}, "holds a branch of /another, step 4; name a new folder"),
    ([], "holds no branch; name a new folder"),
  ):
    (here / FILE).write_text(json.dumps(other))
    with pytest.raises(InputError) as error:
      begin_branch(c, str(here), of_four)
    assert str(error.value) == f"--workdir={here}: {said}"


def test_the_command_refuses_a_step_without_a_branch(capsys, tmp_path):
  args = ["train", "--config=configs/demo.py", f"--workdir={tmp_path / 'new'}", "--step=3"]
  assert cli.main(args) == 2
  assert capsys.readouterr().err == (
    "infini-jax train: --step=3 without --branch=RUN: a run continues from its newest checkpoint; "
    "leave it out\n"
  )


@pytest.mark.slow
def test_one_command_decays_from_a_stable_checkpoint(stable, tmp_path, capsys):
  c, workdir = stable
  command = ["train", f"--branch={workdir}", "--step=4", f"--workdir={tmp_path / 'new'}"]
  wsd = ["--config.optimizer.schedule=wsd", "--config.optimizer.decay_steps=2"]
  assert cli.main([*command, *wsd, "--config.train.steps=5"]) == 2
  assert "to 6 or more" in capsys.readouterr().err and not (tmp_path / "new").exists()
  assert cli.main([*command, *wsd, "--config.train.steps=6"]) == 0
  run = Workdir(tmp_path / "new")
  assert run.config() == planned(c, 6, schedule="wsd", decay_steps=2)
  assert [line["step"] for line in read_metrics(run.path)] == [1, 2, 3, 4, 5, 6]
