"""Import and export of every family, compared with transformers if it is installed."""

import os
import shutil

import jax
import numpy as np
import pytest

from infini_jax.convert.export import export
from infini_jax.convert.huggingface import convert
from infini_jax.data import load_saved, load_tokenizer, train_sentencepiece
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from tests.convert import golden
from tests.convert.reading import console, logits_of, params_of
from tests.tiny import config, of_model, run_config, write_original

pytestmark = pytest.mark.slow
REMEDY = "pip install -e .[reference]"


@pytest.fixture(autouse=True)
def reference():
  os.environ["HF_HUB_OFFLINE"] = "1"
  pytest.importorskip("torch", reason=REMEDY)
  return pytest.importorskip("transformers", reason=REMEDY)


def close(got_BTV, want_BTV, mask_BT, what):
  worst = np.abs(got_BTV - want_BTV)[mask_BT].max()
  print(f"{what}: largest difference of logits {worst:.1e}")
  assert worst < 1e-4, f"{what}: logits differ by {worst:.1e}"


@pytest.mark.parametrize("name", golden.MODELS)
def test_logits_after_import_and_export(rng, tmp_path, name):
  """Fresh random weights; a padded batch of two lengths; windows shorter than both."""
  model = golden.make_folder(name, tmp_path / "model", seed=int(rng.integers(1000)))
  tokens_BT, mask_BT = golden.texts(rng)
  want_BTV = golden.reference_logits(model, tokens_BT, mask_BT)
  run = tmp_path / "run"
  convert(str(tmp_path / "model"), run, None, console())
  close(logits_of(run, tokens_BT, mask_BT), want_BTV, mask_BT, f"{name}, converted")
  one_BT = rng.integers(3, 40, (1, 50)).astype(np.int32)
  all_BT = np.ones(one_BT.shape, bool)
  alone_BTV = golden.reference_logits(model, one_BT, all_BT)
  close(logits_of(run, one_BT), alone_BTV, all_BT, f"{name}, 50 tokens")
  shutil.rmtree(run / "hf")  # so its config.json is made from the config alone
  export(str(run), tmp_path / "out", 3_000, None, console())
  again = golden.load(tmp_path / "out")
  close(golden.reference_logits(again, one_BT, all_BT), alone_BTV, all_BT, f"{name}, exported")


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_a_model_with_shut_gates_equals_the_original_within_a_segment(rng, tmp_path, name):
  """The model with a memory, and transformers on its export, give the same logits."""
  wide = {"sliding_window": 32} if name == "gemma2" else {}
  golden.make_folder(name, tmp_path / "model", seed=int(rng.integers(1000)), **wide)
  convert(str(tmp_path / "model"), tmp_path / "run", None, console())
  model, params, _ = params_of(tmp_path / "run")
  memory = {"mixer": "infini", "segment_length": 24, "gate_init": -30.0}
  c = run_config(of_model(model, **memory))
  params = jax.device_get(params)
  params["blocks"]["attention"]["mixer"] = {
    "beta_H": np.full((model.layers, model.heads), -30.0, np.float32)
  }
  adapted = Workdir(tmp_path / "adapted")
  adapted.claim(c, "a corpus")
  checkpoints = Checkpoints(adapted)
  checkpoints.save_params(params)
  checkpoints.close()
  load_saved(tmp_path / "run" / "tokenizer").save(adapted.tokenizer)
  export(str(adapted.path), tmp_path / "out", 10**9, None, console())
  tokens_BT, mask_BT = golden.texts(rng)
  want_BTV = golden.reference_logits(golden.load(tmp_path / "out"), tokens_BT, mask_BT)
  close(logits_of(adapted.path, tokens_BT, mask_BT), want_BTV, mask_BT, f"{name}, shut gates")


def test_the_tokenizer_is_exported(reference, tmp_path):
  golden.make_folder("llama", tmp_path / "model")
  convert(str(tmp_path / "model"), tmp_path / "run", None, console())
  export(str(tmp_path / "run"), tmp_path / "out", 10**9, None, console())
  there = reference.AutoTokenizer.from_pretrained(tmp_path / "out")
  ids = load_saved(tmp_path / "run" / "tokenizer").encode("a text, read.")
  assert there.encode("a text, read.", add_special_tokens=False) == ids.tolist()


def test_a_vocabulary_of_the_package_is_exported(reference, tmp_path):
  text = "def read(self):\n  return self._text  # as it was written\n\n"
  train_sentencepiece([text * 20], 300, tmp_path / "own.model")
  tokenizer = load_tokenizer(f"sentencepiece:{tmp_path / 'own.model'}")
  write_original(tmp_path / "run", config(model={"vocab_size": 300}), tokenizer)
  export(str(tmp_path / "run"), tmp_path / "out", 10**9, None, console())
  there = reference.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert (there.bos_token_id, there.eos_token_id) == (tokenizer.bos, tokenizer.eos)
  for line in (text, "as  it was", " a", ""):
    assert there.encode(line, add_special_tokens=False) == tokenizer.encode(line).tolist()
    assert there.encode(line) == [tokenizer.bos, *tokenizer.encode(line).tolist()]
