"""A converted model computes what transformers computes: golden logits of every family."""

import json

import numpy as np
import pytest

from infini_jax.data import load_saved
from infini_jax.runs.workdir import Workdir
from tests.convert.golden import GOLDEN, HERE
from tests.convert.reading import logits_of


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_transformers(converted, name):
  """Two texts of different lengths in a batch, with windows shorter than both."""
  with np.load(HERE / name / "logits.npz") as golden:
    tokens_BT, mask_BT, want_BTV = (golden[key] for key in ("tokens", "mask", "logits"))
  got_BTV = logits_of(converted(name), tokens_BT, mask_BT)
  worst = np.abs(got_BTV - want_BTV)[mask_BT].max()
  assert worst < 1e-4, f"{name}: logits differ by {worst:.1e}: see convert/layout.py or the model"
  assert want_BTV[mask_BT].std() > 0.5, "logits that are all alike: a weak test"


def test_a_converted_run_is_an_ordinary_run(converted):
  run = Workdir(converted("qwen2"))
  config = run.config()
  assert config.model.mixer == "full" and not config.data.carry_state
  assert config.model.segment_length == 64 and config.evaluation.input_tokens == 64
  tokenizer = load_saved(run.tokenizer)
  assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (34, 1, 2)
  assert tokenizer.decode(tokenizer.encode("a text, read.")) == "a text, read."
  assert config.data.tokenizer == "run", "a path would be lost where the run is moved"
  original = json.loads((run.path / "hf" / "config.json").read_text())
  assert original == json.loads((HERE / "qwen2" / "config.json").read_text())


def test_the_runs_own_config_file_is_its_config(converted):
  from infini_jax.cli import load_config

  run = Workdir(converted("gemma3"))
  assert load_config([f"--config={run.path / 'config.py'}"]) == run.config()
