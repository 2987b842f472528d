"""What `convert export --memory` writes, and its reader of states, without torch.

`test_torch_model.py` loads it in transformers.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.convert import memory
from infini_jax.convert.export import export
from infini_jax.convert.huggingface import WEIGHTS, convert
from infini_jax.convert.layout import parameter_shapes
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import Session
from infini_jax.inference.engine import checksum
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.tensors import Tensors
from infini_jax.runs.workdir import Workdir
from tests.convert.reading import console
from tests.tiny import config, fake_params

MODEL = {"rule": "delta", "kv_heads": 1, "lora_rank": 2, "write_gate": True, "adapter_rank": 3}


def make_run(folder, rng, dtype="float32", **model):
  """A run with random parameters; returns its config and parameters."""
  c = config(model={"param_dtype": dtype, **model})
  run = Workdir(folder)
  run.claim(c, "a corpus")
  ByteTokenizer().save(run.tokenizer)
  params = jax.device_get(fake_params(c.model, int(rng.integers(1000))))
  with Checkpoints(run) as saved:
    saved.save_params(params)
  return c, params


def reader(folder):
  """The module `infini_state` of an exported folder, which is not a package."""
  spec = importlib.util.spec_from_file_location("infini_state", folder / "infini_state.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A run, its export with memory, and a state of it: folders and files."""
  folder = tmp_path_factory.mktemp("written")
  c, params = make_run(folder / "run", np.random.default_rng(0), **MODEL)
  export(str(folder / "run"), folder / "out", 10**9, None, console(), memory=True)
  session = Session.load(folder / "run", lanes=2)
  session.read(["a text of some segments, and then some", "another"])
  session.save(folder / "text.state")
  return c, params, folder


def test_the_folder_holds_the_memory_and_the_code(written):
  c, params, folder = written
  out = folder / "out"
  names = {file.name for file in out.iterdir()}
  code = {file.name for file in memory.CODE.glob("*.py")}
  assert code == {"modeling_infini.py", "infini_memory.py", "infini_state.py"}
  assert names == code | {
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.bytes",
    WEIGHTS,
  }
  card = (out / "README.md").read_text()
  count = sum(int(np.prod(shape)) for shape in Tensors(out / WEIGHTS).shapes.values())
  assert "trust_remote_code=True" in card and f"The model has {count:,} parameters." in card
  assert "AutoTokenizer" not in card and "tokenizer(" not in card, "transformers has none of bytes"
  assert "ids = torch.tensor([[256, *text.encode()]])" in card and "model.read(text_ids)" in card
  said = json.loads((out / "config.json").read_text())
  assert said["auto_map"]["AutoModelForCausalLM"] == "modeling_infini.InfiniForCausalLM"
  assert said["mixers"] == ["infini"] * c.model.layers
  assert said["systems"]["infini"]["adapter_scale"] == c.model.adapters.alpha / 3
  file, mixer = Tensors(out / WEIGHTS), params["blocks"]["attention"]["mixer"]
  layer = "model.layers.1.self_attn.memory"
  np.testing.assert_array_equal(file.read(f"{layer}.beta"), mixer["beta_H"][1])
  np.testing.assert_array_equal(file.read(f"{layer}.write.weight"), mixer["w_write_DK"][1].T)
  up_RHE = mixer["lora_q"]["up_RHE"][1]
  np.testing.assert_array_equal(file.read(f"{layer}.q_up.weight"), up_RHE.reshape(3, -1).T)


def test_a_state_of_the_run_is_read_by_numpy_alone(written):
  """Every array, and the tokens of each lane that the model has not read."""
  c, params, folder = written
  said = json.loads((folder / "out" / "config.json").read_text())
  assert said["parameters"] == checksum(params)
  read = reader(folder / "out").read_state
  state = read(folder / "text.state", said["parameters"], said["tokenizer"])
  file = Tensors(folder / "text.state")
  assert state.arrays.keys() | {"checksum"} == file.shapes.keys()
  for name, array in state.arrays.items():
    np.testing.assert_array_equal(array, file.read(name), strict=True, err_msg=name)
  session = Session.load(folder / "text.state")
  assert state.unread == [lane.unread for lane in session._lanes]
  assert state.header["position"] == list(session.positions)
  assert state.arrays["stream.memory.M_BKEU"].shape == (c.model.layers, 2, 1, 8, 8)


def test_the_keys_of_a_state_in_bfloat16_become_float32(rng, tmp_path):
  make_run(tmp_path / "run", rng, mixer="local", compute_dtype="bfloat16")
  export(str(tmp_path / "run"), tmp_path / "out", 10**9, None, console(), memory=True)
  session = Session.load(tmp_path / "run")
  session.read("a text")
  session.save(tmp_path / "text.state")
  found = reader(tmp_path / "out").read_state(tmp_path / "text.state").arrays["stream.k_BNKE"]
  want = Tensors(tmp_path / "text.state").read("stream.k_BNKE")
  np.testing.assert_array_equal(found, want.astype(np.float32), strict=True)


def test_a_file_that_is_not_a_state_of_the_model_is_refused_in_one_line(written, tmp_path):
  _, _, folder = written
  whole = (folder / "text.state").read_bytes()
  damaged = bytearray(whole)
  damaged[-9] ^= 1
  (tmp_path / "damaged").write_bytes(damaged)
  (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text").write_text("no state at all")
  (tmp_path / "empty").write_bytes(b"")
  said = {
    folder / "text.state": (("12345678" * 3, ""), "a state of other parameters .*; export the run"),
    folder / "out" / WEIGHTS: ((), "not a state of format 2; load and save it in infini_jax"),
    tmp_path / "damaged": ((), "damaged, its checksum is wrong; copy or make it again"),
    tmp_path / "cut": ((), "no whole state; give a file that Session.save has written"),
    tmp_path / "text": ((), "no whole state; give a file that Session.save has written"),
    tmp_path / "empty": ((), "no whole state; give a file that Session.save has written"),
  }
  for path, (belongs, match) in said.items():
    with pytest.raises(ValueError, match=match) as error:
      reader(folder / "out").read_state(path, *belongs)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checksum_is_that_of_a_state(rng, dtype, monkeypatch):
  """Of parameters of any type that are read one layer at a time, in pieces."""
  monkeypatch.setattr(memory, "PIECE", int(rng.integers(5, 50)))
  model = config(model={"param_dtype": dtype, "pattern": ("infini", "local")}).model
  params = jax.device_get(fake_params(model, int(rng.integers(1000))))

  def read(name, layer):
    value = params
    for key in name.split("."):
      value = value[key]
    return value[layer]

  assert memory.checksum(parameter_shapes(model), read) == checksum(params)


@pytest.mark.parametrize(
  "model", [{"mixer": "full"}, {"mixer": "rmt"}, {"pattern": ("infini", "full")}], ids=str
)
def test_other_memory_systems_are_refused(tmp_path, model):
  grows = "full" in str(model)
  run = Workdir(tmp_path / "run")
  run.claim(config(model=model, data={"carry_state": not grows}), "a corpus")
  with pytest.raises(InputError, match=r"cannot be exported with --memory.*; leave --memory out"):
    export(str(run.path), tmp_path / "out", 10**9, None, console(), memory=True)
  assert not (tmp_path / "out").exists()


def test_what_only_the_code_in_torch_has_is_said_by_an_export_without_it(tmp_path):
  for i, (model, match) in enumerate(
    [
      ({"mixer": "gated_delta"}, "mixer='gated_delta' cannot be exported; .*export --memory"),
      ({"write_gate": True}, "write_gate=True cannot be exported: .*export --memory"),
    ]
  ):
    run = Workdir(tmp_path / f"run{i}")
    run.claim(config(model=model), "a corpus")
    with pytest.raises(InputError, match=match):
      export(str(run.path), tmp_path / "out", 10**9, None, console())


def test_an_export_with_memory_is_no_folder_of_weights_to_import(written, tmp_path):
  _, _, folder = written
  with pytest.raises(InputError, match=r"model_type='infini'.* --memory.*give the run"):
    convert(str(folder / "out"), tmp_path / "again", None, console())
