"""An export equals the imported folder bit by bit, and holds the memory."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from infini_jax.config import HOW_TO_RUN, InputError, MeshConfig, ModelConfig
from infini_jax.convert.building import lay_down
from infini_jax.convert.export import export
from infini_jax.convert.families import ARCHITECTURES, config_of, fits, read_config
from infini_jax.convert.huggingface import INDEX, MEMORY, WEIGHTS, convert
from infini_jax.data import load_saved
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.models import completed
from infini_jax.parallel import make_mesh
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.tensors import Tensors, save
from infini_jax.runs.workdir import Workdir
from infini_jax.training.start import check_start, original_params
from infini_jax.training.step import TrainState
from tests.convert.golden import HERE
from tests.convert.reading import console, logits_of, params_of
from tests.tiny import config, fake_params, of_model, run_config


def tensors_of(folder):
  return {
    name: file.read(name)
    for path in folder.glob("model*.safetensors")
    for file in [Tensors(path)]
    for name in file.shapes
  }


def same_params(one, other, changes=()):
  (model, a, _), (again, b, _) = params_of(one), params_of(other)
  assert of_model(model, **dict(changes)) == again
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), y, strict=True)
  jax.tree.map(compare, a, jax.device_get(b))


def make_run(path, c, rng, start_from=""):
  """A run with random parameters and gates."""
  c = dataclasses.replace(c, train=dataclasses.replace(c.train, start_from=start_from))
  run = Workdir(path)
  run.claim(c, "a corpus")
  params = jax.device_get(fake_params(c.model, int(rng.integers(1000))))
  checkpoints = Checkpoints(run)
  checkpoints.save_params(params)
  checkpoints.close()
  return run


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_folder_comes_back_bit_by_bit(converted, tmp_path, name):
  out = tmp_path / "out"
  export(str(converted(name)), out, 3_000, None, console())
  index = json.loads((out / INDEX).read_text())
  files = sorted(set(index["weight_map"].values()))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
  held = [list(Tensors(out / file).shapes) for file in files]
  before, after = tensors_of(HERE / name), tensors_of(out)
  sizes = [sum(after[tensor].nbytes for tensor in of_file) for of_file in held]
  assert sum(sizes) == index["metadata"]["total_size"]
  assert all(size <= 3_000 or len(of_file) == 1 for size, of_file in zip(sizes, held, strict=True))
  assert before.keys() == after.keys() == index["weight_map"].keys()
  for tensor, value in before.items():
    np.testing.assert_array_equal(after[tensor], value, strict=True, err_msg=tensor)
  was, now = (json.loads((folder / "config.json").read_text()) for folder in (HERE / name, out))
  assert now == was | {"torch_dtype": "float32"}
  assert (out / "tokenizer.json").read_bytes() == (HERE / name / "tokenizer.json").read_bytes()
  assert not (out / MEMORY).exists(), "there is no memory to keep"
  convert(str(out), tmp_path / "again", None, console())
  same_params(converted(name), tmp_path / "again")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapted_run_is_exported_with_its_memory(converted, rng, tmp_path, dtype):
  start = Workdir(converted("qwen2"))
  memory = {"mixer": "infini", "segment_length": 16, "rule": "delta", "gate_init": -2.5}
  memory |= {"gate": "hard_sigmoid", "decay": 0.9, "scale_first_segment": True}
  memory |= {"normalize_keys": True, "z_correction": True, "readout_norm": True}
  how = {"remat": "dots", "implementation": "scan", "attention": "splash"}
  how |= {"compute_dtype": "bfloat16"}
  c = run_config(of_model(start.config().model, **memory, **how, param_dtype=dtype))
  run = make_run(tmp_path / "run", c, rng, str(start.path))
  load_saved(start.tokenizer).save(run.tokenizer)
  out = tmp_path / "out"
  export(str(run.path), out, 10**9, None, console())
  raw = json.loads((out / "config.json").read_text())
  assert raw["model_type"] == "qwen2" and raw["torch_dtype"] == dtype
  assert raw["use_cache"] is True, "the original's config.json is kept where it fits"
  assert Tensors(out / WEIGHTS).metadata == {"format": "pt"}, "transformers asks for it"
  memory = json.loads(Tensors(out / MEMORY).metadata["memory"])
  assert memory["infini"]["rule"] == "delta" and memory.keys() == {"model", "infini"}
  older = memory["model"] | memory["infini"]  # the form of older exports, without newer fields
  for name in ("adapter_rank", "write_penalty"):
    del older[name]
  for name in ("remat", "implementation", "attention"):
    older[name] = getattr(c.model.run, name)
  gates_LH = Tensors(out / MEMORY).read("gates_LH")
  save(out / MEMORY, {"gates_LH": gates_LH}, {"memory": json.dumps(older)})
  convert(str(out), tmp_path / "again", None, console())
  usual = {name: getattr(ModelConfig().run, name) for name in HOW_TO_RUN}
  usual["compute_dtype"] = dtype  # the type of the weights
  same_params(run.path, tmp_path / "again", usual)


@pytest.mark.parametrize(
  "pattern", [("infini", "full", "infini"), ("local", "local", "infini")], ids="+".join
)
def test_the_weights_of_a_pattern_are_those_of_the_original(converted, tmp_path, pattern):
  """The same weights in the same layers, and gates in those with a memory."""
  start = Workdir(converted("qwen2"))
  model = of_model(start.config().model, pattern=pattern, rule="delta", segment_length=16)
  c = run_config(model, data={"carry_state": False}, train={"start_from": str(start.path)})
  check_start(c)
  run, here = Workdir(tmp_path / "run"), make_mesh(MeshConfig(data=1), jax.devices()[:1])
  run.claim(c, "a corpus")
  load_saved(start.tokenizer).save(run.tokenizer)
  with jax.set_mesh(here), Checkpoints(run) as saved:
    params = completed(model, original_params(c, here), jax.random.key(0), here)
    saved.save_params(jax.device_get(params))
  gates_LH = params["blocks"]["attention"]["mixer"]["infini"]["beta_H"]
  assert gates_LH.shape == (pattern.count("infini"), model.heads)
  out = tmp_path / "out"
  export(str(run.path), out, 10**9, None, console())
  before, after = tensors_of(HERE / "qwen2"), tensors_of(out)
  assert before.keys() == after.keys()
  for tensor, value in before.items():
    np.testing.assert_array_equal(after[tensor], value, strict=True, err_msg=tensor)
  convert(str(out), tmp_path / "again", None, console())
  same_params(run.path, tmp_path / "again")
  assert Workdir(tmp_path / "again").config().data.carry_state == ("full" not in pattern)


def test_a_run_trained_from_scratch_is_exported(rng, tmp_path):
  """Local attention, a tokenizer of the package, and adapters, which are merged."""
  c = config(model={"mixer": "local", "lora_rank": 2, "tied_embeddings": False})
  run = Workdir(tmp_path / "run")
  run.claim(c, "a corpus")
  ByteTokenizer().save(run.tokenizer)
  checkpoints = Checkpoints(run, keep=2)  # as in training
  embeddings = {}
  for step in (3, 4):
    params = fake_params(c.model, int(rng.integers(1000)))
    embeddings[step] = jax.device_get(params["embed_VD"])
    checkpoints.save(step, TrainState(np.array(step), params, {"m": np.zeros(1)}, None, None))
  checkpoints.close()
  export(str(run.path), tmp_path / "out", 10**9, None, console())
  export(str(run.path), tmp_path / "before", 10**9, 3, console())
  for step, folder in ((3, "before"), (4, "out")):
    tensor = Tensors(tmp_path / folder / WEIGHTS).read("model.embed_tokens.weight")
    np.testing.assert_array_equal(tensor, embeddings[step], err_msg=f"of step {step}")
  convert(str(tmp_path / "out"), tmp_path / "again", None, console())
  model, params, _ = params_of(tmp_path / "again")
  assert model == of_model(c.model, adapters=model.adapters, run=model.run)
  before = jax.device_get(params_of(run.path)[1]["blocks"]["attention"])
  adapter = before["lora_o"]
  added = np.einsum("LHER,LRD->LHED", adapter["down_HER"], adapter["up_RD"])
  wanted = before["w_o_HED"] + c.model.adapters.alpha / 2 * added
  np.testing.assert_allclose(params["blocks"]["attention"]["w_o_HED"], wanted, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_exported_is_refused(converted, rng, tmp_path):
  run = Workdir(tmp_path / "run")
  run.claim(config(model={"mixer": "compressive"}), "a corpus")
  with pytest.raises(InputError, match="mixer='compressive' cannot be exported"):
    export(str(run.path), tmp_path / "out", 10**9, None, console())
  other = Workdir(tmp_path / "pattern")
  other.claim(config(model={"pattern": ("infini", "compressive")}), "a corpus")
  with pytest.raises(InputError, match=r"pattern=\('infini', 'compressive'\) cannot be exported"):
    export(str(other.path), tmp_path / "out", 10**9, None, console())
  with pytest.raises(InputError, match="no checkpoint of step 7"):
    export(str(converted("qwen2")), tmp_path / "out", 10**9, 7, console())
  with pytest.raises(InputError, match="no run here"):
    export(str(tmp_path / "none"), tmp_path / "out", 10**9, None, console())
  damaged = shutil.copytree(converted("qwen2"), tmp_path / "damaged")
  max((damaged / "checkpoints" / "0" / "params" / "embed_VD").iterdir()).unlink()
  with pytest.raises(
    InputError, match="checkpoints.0: damaged .*embed_VD.*: missing.*; put a copy there"
  ):
    export(str(damaged), tmp_path / "out", 10**9, None, console())
  without = shutil.copytree(converted("qwen2"), tmp_path / "without")
  shutil.rmtree(without / "tokenizer")
  with pytest.raises(InputError, match="holds no saved tokenizer"):
    export(str(without), tmp_path / "out", 10**9, None, console())
  assert not (tmp_path / "out").exists()
  assert not list(tmp_path.glob("*.partial"))


NO_STATE = {"data": {"carry_state": False}}
SAID = {"max_position_embeddings": 131_072, "eos_token_id": [2, 5], "pad_token_id": 0}


@pytest.mark.parametrize(
  ("name", "changes", "family"),
  [
    ("llama3", {}, "llama"),
    ("llama3", {"rope_theta": 5e6}, "llama"),
    ("llama3", {"rope_scaling": (4.0,)}, "llama"),
    ("llama3", {"window": 16}, "mistral"),
    ("mistral", {"window": 0, "norm_eps": 1e-3}, "mistral"),
    ("qwen2", {"rope_theta": 5e6, "vocab_size": 48}, "qwen2"),
    ("gemma3", {"window_theta": 77.0}, "gemma3_text"),
    ("gemma3", {"window": 0, "window_theta": 0.0, "global_every": 0}, "gemma3_text"),
    ("smollm3", {"global_every": 3}, "smollm3"),
  ],
  ids=str,
)
def test_keys_that_the_model_does_not_decide_stay_those_of_the_original(name, changes, family):
  raw = json.loads((HERE / name / "config.json").read_text()) | SAID | {"a_note": "mine"}
  model = of_model(ModelConfig(), **read_config(raw, name)[0] | changes)
  written = config_of(model, raw, 8192)
  assert {key: written[key] for key in SAID} == SAID
  assert written["a_note"] == "mine" and written["use_cache"] is True
  assert written["bos_token_id"] == 1 and written["model_type"] == family
  assert written["architectures"] == [ARCHITECTURES[family]]
  assert fits(written, model), "what is written must describe the model"
  if not changes:
    assert written == raw
  if family == "gemma3_text":
    assert written["sliding_window"], "transformers refuses it without one, needed or not"


def test_a_run_exports_its_originals_files_after_the_original_is_deleted(converted, rng, tmp_path):
  start = shutil.copytree(converted("llama3"), tmp_path / "start")
  (start / "hf" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
  raw = json.loads((start / "hf" / "config.json").read_text()) | SAID
  (start / "hf" / "config.json").write_text(json.dumps(raw))
  model = of_model(Workdir(start).config().model, rope_theta=5e6)
  run = make_run(tmp_path / "run", run_config(model, **NO_STATE), rng, str(start))
  load_saved(Workdir(start).tokenizer).save(run.tokenizer)
  run.keep_original()
  run.keep_original()
  shutil.rmtree(start)
  export(str(run.path), tmp_path / "out", 10**9, None, console())
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  assert {key: written[key] for key in SAID} == SAID and written["rope_theta"] == 5e6
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [2, 5]


@pytest.mark.parametrize("plus_one", [False, True])
def test_the_factor_of_logits_of_a_wide_model_is_exported_too(rng, tmp_path, plus_one):
  """muP's base / width: it goes into the last norm, for no config.json has a place for it."""
  family = {"norm_plus_one": True, "embed_scale": 4.0, "post_norms": True} if plus_one else {}
  family |= {"activation": "geglu", "query_scale": 0.25} if plus_one else {}
  c = config(model={"mixer": "full", "width_base": 5, **family}, data={"carry_state": False})
  run = make_run(tmp_path / "run", c, rng)
  ByteTokenizer().save(run.tokenizer)
  export(str(run.path), tmp_path / "out", 10**9, None, console())
  convert(str(tmp_path / "out"), tmp_path / "again", None, console())
  tokens_BT = rng.integers(0, 256, (2, 16))
  before, after = (logits_of(tmp_path / name, tokens_BT) for name in ("run", "again"))
  np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
  assert params_of(tmp_path / "again")[0].width_base == 0


@pytest.mark.parametrize(
  ("value", "dtype", "said"),
  [
    (np.nan, "float32", "holds nan, so no output"),
    (-np.inf, "bfloat16", "holds -inf, so no output"),
    (3.4e38, "bfloat16", "holds 3.4e+38, which is too large for bfloat16"),
  ],
  ids=str,
)
def test_weights_that_are_not_finite_are_not_exported(rng, tmp_path, value, dtype, said):
  layer = rng.standard_normal((3, 4)).astype(np.float32)
  layer[1, 2] = value
  with pytest.raises(InputError, match=re.escape(f"tensor one {said}")):
    lay_down(tmp_path / "file", [("one", layer.T.T)], (3, 4), dtype)


def test_the_average_is_exported_in_the_type_of_the_parameters(rng, tmp_path):
  """A parameter that was not trained has no average, and is exported as it is."""
  c = config(model={"param_dtype": "bfloat16"})
  run = Workdir(tmp_path / "run")
  run.claim(c, "a corpus")
  ByteTokenizer().save(run.tokenizer)
  params = fake_params(c.model, int(rng.integers(1000)))
  ema = jax.tree.map(lambda x: np.float32(x) + 1, jax.device_get(params))
  state = TrainState(jax.numpy.array(0), params, None, None, None, ema=ema | {"embed_VD": None})
  with Checkpoints(run) as saved:
    saved.save(0, state)
  for averaged in (False, True):
    export(str(run.path), tmp_path / f"out{averaged}", 10**9, None, console(), ema=averaged)
  last, mean = (tensors_of(tmp_path / f"out{averaged}") for averaged in (False, True))
  assert {name: x.dtype for name, x in last.items()} == {name: x.dtype for name, x in mean.items()}
  embedding = "model.embed_tokens.weight"
  np.testing.assert_array_equal(last[embedding], mean[embedding])
  norm = "model.norm.weight"
  want = (np.float32(params["final_norm"]["scale_E"]) + 1).astype(last[norm].dtype)
  np.testing.assert_array_equal(mean[norm], want)
