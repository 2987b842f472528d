"""The chat template goes with a model: into a run, from run to run, and out again."""

import json
import shutil

import pytest

from infini_jax.convert.export import export
from infini_jax.convert.gguf import convert
from infini_jax.convert.vocabulary import find_tokenizer
from infini_jax.data import find_template
from infini_jax.data.chat.conversation import open_chat
from infini_jax.runs.workdir import Workdir
from tests.convert.gguf_files import write
from tests.convert.reading import console
from tests.data.chat.vocabulary import CHATML, user, vocabulary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  import numpy as np

  folder = tmp_path_factory.mktemp("gguf")
  file = folder / "model.gguf"
  write(file, np.random.default_rng(0), fields={"tokenizer.chat_template": CHATML})
  convert(file, folder / "run", None, console())
  return folder / "run"


def test_a_gguf_file_brings_its_template(run, tmp_path):
  tokenizer = Workdir(run).load_tokenizer()
  assert tokenizer.template.texts == {"default": CHATML}
  assert tokenizer.template.tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
  chat = open_chat(tokenizer)
  ids = chat.encode(chat.render([user("a")], ask=True))
  assert ids[0] == tokenizer.bos and chat.end == tokenizer.eos


def test_an_export_has_it_as_transformers_reads_it(run, tmp_path):
  export(str(run), tmp_path / "out", 10**9, None, console())
  assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML
  assert find_template(tmp_path / "out").texts == {"default": CHATML}
  assert not (tmp_path / "out" / "chat.json").exists()


def test_a_folder_brings_its_template(tmp_path):
  vocabulary(None).save(tmp_path)
  said = {"chat_template": CHATML, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
  found = find_tokenizer(tmp_path, {"vocab_size": 260}).template
  assert found.texts == {"default": CHATML} and found.tokens["eos_token"] == "<|endoftext|>"


def test_a_run_that_was_imported_before_has_the_template_of_its_folder(run, tmp_path):
  older = tmp_path / "older"
  shutil.copytree(run, older)
  (older / "tokenizer" / "chat.json").unlink()
  assert Workdir(older).load_tokenizer().template is None
  (older / "hf" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
  assert Workdir(older).load_tokenizer().template.texts == {"default": "x"}
