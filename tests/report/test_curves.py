"""The pictures of training."""

import json
import math

import pytest

from infini_jax.report.curves import training
from infini_jax.report.runs import read_runs
from tests.report.test_page import write_run


def logged(folder, steps, mfu=None, gates=True, validation="perplexity", **sections):
  """A run with all metrics of a training, and validations."""
  write_run(folder, **sections)
  lines = []
  for step in range(1, steps + 1):
    lines.append({"step": step, "kind": "train", "loss": 5 / step, "learning_rate": 1e-3,
                  "grad_norm": 1.0, "mfu": mfu, "model_flops_per_second": 1e9,
                  "tokens_per_second": 9.0, "dead_heads": 0.0}
                 | ({"gates_LH": [[0.5, 0.1 + step / 1000]]} if gates else {}))  # fmt: skip
    lines.append({"step": step, "kind": "validation", validation: math.exp(6 / step)})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(folder)


def captions(page):
  return [part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:]]


@pytest.mark.rendered
def test_a_run_has_all_curves_of_its_metrics(tmp_path):
  page = training(read_runs([logged(tmp_path / "a", 400)]))
  assert captions(page) == [
    "Training loss", "Validation loss", "Learning rate", "Gradient norm",
    "Speed (no MFU: the peak of this device is not known)", "Gates: every head",
  ]  # fmt: skip
  assert "a from 6 at step 1 to 0.015 at step 400" in page, "the log of the perplexity"
  assert "a at the end from 0.50 to 0.50" in page.split("gates: ")[1]
  assert len(page) < 120_000, "a long run has as many points as a picture shows"


def test_validations_of_answers_are_shown_as_losses_also_of_older_runs(tmp_path):
  names = {"old": "summary_perplexity", "new": "answer_perplexity"}
  runs = read_runs([logged(tmp_path / run, 4, validation=name) for run, name in names.items()])
  found = training(runs).split("Line chart, Validation loss: ")[1].split('"')[0]
  assert all(f"{run} from 6 at step 1 to 1.5 at step 4" in found for run in names), found


def test_runs_are_named_once_and_share_pictures_of_what_is_comparable(tmp_path):
  runs = read_runs([
    logged(tmp_path / "a", 5, mfu=0.4), logged(tmp_path / "b", 5, gates=False),
    logged(tmp_path / "c", 5, data={"path": "other"}),
  ])  # fmt: skip
  page = training(runs)
  assert captions(page) == [
    "Training loss (corpus)", "Training loss (other)",
    "Validation loss (corpus)", "Validation loss (other)", "Learning rate", "Gradient norm",
    "MFU", "Gates: mean of all heads; thin: least and greatest",
  ]  # fmt: skip
  assert page.count('class="swatch"') == 3 and "same text, tokenizer and task" in page
  mfu = page.split("Line chart, MFU: ")[1].split('"')[0]
  assert mfu == "a from 0.4 at step 1 to 0.4 at step 5", "the others have none"


def test_nothing_that_was_logged_is_no_picture(tmp_path):
  page = training(read_runs([str(write_run(tmp_path / "a", losses=()))]))
  assert "No step was logged yet" in page and "<svg" not in page
