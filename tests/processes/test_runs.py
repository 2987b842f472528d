"""Several processes are one run: the same losses, checkpoints and figures. They end together.

The processes are real, joined over the loopback interface, each with its own CPU devices.
"""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from infini_jax import cli
from infini_jax.evaluation.filing import newest, newest_file
from tests import tiny


def losses(folder, kind="train"):
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if line["kind"] == kind]
  return [line["step"] for line in lines], [line.get("loss", line.get("nats")) for line in lines]


@pytest.fixture(scope="module")
def alone(job):
  """The run of one process, which the others are compared with. The first test makes it."""
  return job / "alone"


@pytest.mark.slow
def test_trains_saves_restores_and_evaluates_as_one_process(command, job, alone):
  command("train", "alone", 1)
  for count in (2, 4):
    run = job / f"of{count}"
    command("train", run.name, count)
    for kind in ("train", "validation"):
      steps, values = losses(run, kind)
      expected_steps, expected = losses(alone, kind)
      assert steps == expected_steps, "each step is written once"
      np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["3", "6"]

  # A checkpoint of two processes is continued by one and by four.
  for count in (1, 4):
    shutil.copytree(job / "of2", job / f"on{count}")
    shutil.rmtree(job / f"on{count}" / "checkpoints" / "6")
    (job / f"on{count}" / "metrics.jsonl").unlink()
    command("train", f"on{count}", count)
    steps, values = losses(job / f"on{count}")
    assert steps == [4, 5, 6]
    np.testing.assert_allclose(values, losses(alone)[1][3:], rtol=1e-5)

  figures = {}
  for count in (1, 2, 4):
    command("eval", "of2", count)
    file = newest_file(job / "of2", "perplexity")
    found = json.loads(file.read_text())
    for scores in (found["memory"], *found["knocked_out"].values()):
      del scores["seconds"], scores["tokens_per_second"]
    for how in ("seconds", "date", "command", "environment"):
      del found[how]
    figures[count] = found
    file.unlink()
  same_figures(figures[2], figures[1])
  same_figures(figures[4], figures[1])


def same_figures(got, expected):
  """Compares numbers to 1e-5, and everything else exactly."""
  assert type(got) is type(expected)
  if isinstance(got, dict):
    assert got.keys() == expected.keys()
    got, expected = list(got.values()), list(expected.values())
  if isinstance(got, list):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
      same_figures(a, b)
  elif isinstance(got, float):
    np.testing.assert_allclose(got, expected, rtol=1e-5)
  else:
    assert got == expected


@pytest.mark.slow
@pytest.mark.parametrize("config", ["seq", "dcn"])
def test_other_meshes_over_processes(command, job, config):
  """`seq`: two processes hold the same lanes, and each has one segment of a chunk. `dcn`: each
  process is an island. Both are evaluated on pass keys."""
  found = []
  keys = ("--config.evaluation.task=passkey", "--config.evaluation.lengths=(256,)")
  keys += ("--config.evaluation.samples=4", "--config.evaluation.depths=(0.0,0.5)")
  for count in (1, 2):
    run = f"{config}{count}"
    command("train", run, count, config=config, devices=4)
    command("eval", run, count, *keys, config=config, devices=4)
    found.append(newest(job / run, "passkey"))
    for scores in (found[-1]["memory"], *found[-1]["knocked_out"].values()):
      scores.pop("seconds", None)
      scores.pop("tokens_per_second", None)
  one, two = (losses(job / f"{config}{count}") for count in (1, 2))
  assert two[0] == one[0]
  np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
  same_figures(found[1]["memory"], found[0]["memory"])
  same_figures(found[1]["knocked_out"], found[0]["knocked_out"])


def write_digits(folder):
  """Texts of digits with summaries: an almost untrained model is sometimes right."""
  rng = np.random.default_rng(0)
  text = lambda n: " ".join(rng.choice(list("0123456789"), n))
  folder.mkdir()
  for split, count in (("train", 9), ("validation", 1), ("test", 11)):
    lines = ({"text": text(rng.integers(40, 300)), "summary": text(9)} for _ in range(count))
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize(
  "run,tasks",
  [
    ("digits", ("perplexity", "passkey", "needle", "summarization")),
    ("pairs", ("recall",)),
  ],
)
def test_two_processes_find_what_one_finds(command, job, run, tasks):
  own = {"name": "recall", "pairs": 3, "distinct_keys": 6, "distinct_values": 4}
  data = {"path": f"jsonl:{job}/texts?summary=summary"}
  if run == "digits":
    write_digits(job / "texts")
    own = {}
  else:
    data = {"tokenizer": "task", "carry_state": False}
  asked = {"lengths": (450,), "depths": (0.0, 0.6), "samples": 9, "summary_length": 12}
  sections = {
    **tiny.RUN,
    "model": {**tiny.RUN["model"], "rule": "delta"},
    "data": {**tiny.RUN["data"], **data},
    "task": own,
    "evaluation": {**tiny.RUN["evaluation"], **asked},
    "mesh": {"data": -1},
  }
  (job / f"{run}.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  command("train", run, 1, config=run)
  found, folder = {}, job / run / "evaluation"
  for count in (1, 2):
    command("eval", run, count, f"--task={','.join(tasks)}", config=run)
    files = {task: newest_file(job / run, task) for task in tasks}
    found[count] = {}
    for task, file in files.items():
      results = json.loads(file.read_text())
      figures = [results["memory"], *results["knocked_out"].values()]
      for scores in figures:
        scores.pop("seconds", None)
        del scores["tokens_per_second"]
      found[count][task] = figures
    if "summarization" in tasks:
      lines = files["summarization"].with_name("predictions.jsonl").read_text().splitlines()
      found[count]["texts"] = [json.loads(line) for line in lines]
    shutil.rmtree(folder)
  same_figures(found[2], found[1])
  if run == "digits":
    written = {text["written"] for text in found[1]["texts"]}
    assert len(found[1]["texts"]) == 11 and len(written) > 3, "a weak test"
  right = found[1][tasks[-1] if run == "pairs" else "passkey"][0]["token_accuracy"]
  assert right > 0, "nothing is right: a weak test"


def endless(command, job, workdir):
  """A run of two processes that does not end by itself, after it has started."""
  fields = ("--config.train.steps=100000", "--config.train.checkpoint_every=100000")
  fields += ("--config.train.eval_every=0",)
  both = command("train", workdir, 2, *fields, wait=False)
  metrics, deadline = job / workdir / "metrics.jsonl", time.monotonic() + 200
  while not (metrics.exists() and metrics.read_text().count("\n") > 2):
    ended = [p.communicate() for p in both if p.poll() is not None]
    assert time.monotonic() < deadline and not ended, f"never began: {ended}"
    time.sleep(0.2)
  return both


@pytest.mark.slow
def test_a_signal_to_one_saves_the_same_step_and_stops_all(command, job):
  both = endless(command, job, "stopped")
  os.kill(both[1].pid, signal.SIGTERM)
  outputs = [process.communicate(timeout=100) for process in both]
  assert [process.returncode for process in both] == [cli.STOPPED] * 2, outputs
  (checkpoint,) = (job / "stopped" / "checkpoints").iterdir()
  assert f"stopped at step {checkpoint.name}, saved" in outputs[0][0]
  steps = losses(job / "stopped")[0]
  assert steps == list(range(1, int(checkpoint.name) + 1))


@pytest.mark.slow
def test_a_fault_of_all_processes_is_reported_and_ends_them_at_once(command):
  both = command("train", "wrong", 2, "--config.data.path=nowhere", wait=False)
  outputs = [process.communicate(timeout=60) for process in both]
  assert [process.returncode for process in both] == [2, 2], outputs
  assert all("no such folder" in err and "Traceback" not in err for _, err in outputs)
