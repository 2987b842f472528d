"""Damaged, missing or unsupported input gives one line with the remedy, and leaves no files."""

import fnmatch
import json
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.convert.building import building, check_room
from infini_jax.convert.hub import find_folder
from infini_jax.convert.huggingface import read_folder
from infini_jax.convert.layout import entries
from infini_jax.convert.vocabulary import find_tokenizer
from infini_jax.runs.tensors import Tensors, save
from tests.convert.golden import HERE
from tests.tiny import quiet


@pytest.fixture
def folder(tmp_path):
  """A valid folder, which tests damage."""
  return shutil.copytree(HERE / "qwen2", tmp_path / "model")


def arrays(folder):
  file = Tensors(folder / "model.safetensors")
  return {name: file.read(name) for name in file.shapes}


def edit(folder, file="config.json", **changes):
  content = json.loads((folder / file).read_text()) | changes
  (folder / file).write_text(json.dumps(content))


def with_tensors(folder, change):
  tensors = arrays(folder)
  change(tensors)
  save(folder / "model.safetensors", tensors)


def shard(folder):
  tensors = arrays(folder)
  weight_map = {
    name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(tensors)
  }
  for file in set(weight_map.values()):
    save(folder / file, {n: tensors[n] for n in tensors if weight_map[n] == file})
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def missing_shard(folder):
  shard(folder)
  (folder / "model-00002-of-00002.safetensors").unlink()


def twice(folder):
  """Two shards that both hold one tensor."""
  shard(folder)
  first, second = sorted(folder.glob("model-*"))
  both = {
    name: Tensors(file).read(name) for file in (first, second) for name in Tensors(file).shapes
  }
  save(second, {name: array + 1 for name, array in both.items()})


def truncated(folder):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-100])


def elsewhere(folder):
  shard(folder)
  file = folder / "model.safetensors.index.json"
  weight_map = json.loads(file.read_text())["weight_map"]
  edit(folder, file.name, weight_map={name: f"../{at}" for name, at in weight_map.items()})


def half_a_memory(folder, gate=1.0, **settings):
  memory = {"memory": json.dumps({"mixer": "infini"} | settings)}
  gates_LH = np.full((3, 4), gate, np.float32)
  save(folder / "infini.safetensors", {"gates_LH": gates_LH}, memory)


def pickled(folder):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def larger_tokenizer(folder):
  content = json.loads((folder / "tokenizer.json").read_text())
  content["model"]["vocab"]["zz"] = 50
  (folder / "tokenizer.json").write_text(json.dumps(content))


def not_finite(folder, name, value, dtype=np.float32):
  """Writes one value into a tensor."""

  def change(tensors):
    tensors[name] = tensors[name].astype(dtype)
    tensors[name].reshape(-1)[-1] = value

  with_tensors(folder, change)


NORM = "model.norm.weight"
DOWN = "model.layers.2.mlp.down_proj.weight"
SPOILT = {
  "nan": (
    lambda f: not_finite(f, NORM, np.nan),
    f"tensor {NORM} holds nan, so no output would be finite",
  ),
  "infinite": (lambda f: not_finite(f, DOWN, -np.inf, np.float16), f"tensor {DOWN} holds -inf"),
  "bfloat16": (lambda f: not_finite(f, DOWN, np.nan, jnp.bfloat16), f"tensor {DOWN} holds nan"),
  "too large": (
    lambda f: not_finite(f, DOWN, 1e300, np.float64),
    f"tensor {DOWN} holds 1e.300, which is too large for float32",
  ),
  "gates": (
    lambda f: half_a_memory(f, np.inf, segment_length=16),
    "tensor gates_LH holds inf",
  ),
  "architecture": (lambda f: edit(f, model_type="mixtral"), "'mixtral' is not supported"),
  "scaling": (lambda f: edit(f, rope_scaling={"rope_type": "dynamic"}), "type 'dynamic' is not"),
  "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
  "no json": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
  "twice": (
    twice,
    "tensor .* is there twice, in model-00001-of-00002.safetensors and in model-00002",
  ),
  "missing shard": (missing_shard, "00002-of-00002.safetensors: this shard, of .* is missing"),
  "truncated": (truncated, "not a whole safetensors file .*download it again"),
  "shape": (lambda f: with_tensors(f, lambda t: t.update({NORM: np.ones(9, np.float32)})), "9,"),
  "missing": (lambda f: with_tensors(f, lambda t: t.pop(NORM)), f"{NORM} is missing where"),
  "integers": (
    lambda f: with_tensors(f, lambda t: t.update({NORM: np.ones(8, np.int8)})),
    "type int8",
  ),
  "not tied": (
    lambda f: edit(f, tie_word_embeddings=True),
    "lm_head.weight is not model.embed_tok",
  ),
  "unexpected": (
    lambda f: with_tensors(f, lambda t: t.update({"model.other.weight": np.ones(1, np.float32)})),
    "model.other.weight does not belong to",
  ),
  "pickle": (pickled, "a pickle .pytorch_model.bin., which can run anything and is never loaded"),
  "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors and no"),
  "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json and no tokenizer"),
  "no tokens": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a Hugging Face tokenizer"),
  "larger tokenizer": (larger_tokenizer, "its 51 ids are more than the embedding's 40 rows"),
  "elsewhere": (elsewhere, "index.json: its weight_map names no files"),
  "no index": (
    lambda f: (shard(f), edit(f, "model.safetensors.index.json", weight_map=[1])),
    "no f",
  ),
  "layers": (lambda f: edit(f, num_hidden_layers=10**9), "layers.3.self_attn.k_proj.bias is miss"),
  "kv heads": (lambda f: edit(f, num_key_value_heads="2"), "num_key_value_heads='2': must be a wh"),
  "positions": (lambda f: edit(f, max_position_embeddings=0), "max_position_embeddings=0: must be"),
  "no number": (
    lambda f: edit(f, rms_norm_eps=float("nan")),
    "config.json: rms_norm_eps=nan: must be a number above 0",
  ),
  "layer types": (
    lambda f: edit(f, use_sliding_window=True, sliding_window=4, layer_types=["full_attention"]),
    "has 1 layer_types for 3 layers",
  ),
  "no id": (lambda f: edit(f, bos_token_id=40), "bos_token_id=40 is not an id of its 40; corr"),
  "wider memory": (lambda f: half_a_memory(f, width=16), "not written by `infini-jax convert exp"),
  "other memory": (
    lambda f: half_a_memory(f, mixer="rmt"),
    "not written by `infini-jax convert exp",
  ),
  "foreign memory": (lambda f: save(f / "infini.safetensors", {"x": np.ones(1)}), "not written by"),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_bad_folder_is_refused_in_one_line(folder, tmp_path, capsys, spoil):
  change, said = SPOILT[spoil]
  change(folder)
  status = cli.main(["convert", "hf", str(folder), str(tmp_path / "out")])
  lines = capsys.readouterr().err.splitlines()
  assert status == 2 and len(lines) == 1, f"one line and status 2 are expected: {lines}"
  with pytest.raises(InputError, match=said):
    raise InputError(lines[0])
  assert sorted(p.name for p in tmp_path.iterdir()) == ["model"], "something is left behind"


def test_a_missing_folder_is_refused(tmp_path, capsys):
  for name in (f"{tmp_path}/none", "no one's model"):
    assert cli.main(["convert", "hf", name, str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
  assert cli.main(["convert", "hf", "", str(tmp_path / "out")]) == 2
  assert "DIR_OR_NAME is empty; give one" in capsys.readouterr().err


def test_a_model_name_is_looked_up_in_the_hub_then_in_the_cache(folder, monkeypatch):
  """The cache may hold only a part of a model, such as its tokenizer."""
  asked = []

  def snapshot_download(name, allow_patterns, local_files_only):
    asked.append((name, local_files_only, *allow_patterns))
    if len(asked) < 2:
      raise ConnectionError("no network")
    return str(folder)

  hub = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  assert find_folder("someone/model") == folder
  assert [local for _, local, *_ in asked] == [False, True]
  files = ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "training_args.bin"]
  assert not [f for f in files for pattern in asked[0][2:] if fnmatch.fnmatch(f, pattern)]
  hub.snapshot_download = None  # every call fails
  with pytest.raises(
    InputError, match="could not be downloaded from the hub .TypeError.; where there is a"
  ):
    find_folder("someone/model")


def test_existing_files_are_never_overwritten(folder, tmp_path, capsys):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("kept")
  assert cli.main(["convert", "hf", str(folder), str(tmp_path / "out")]) == 2
  assert "exists already; choose another" in capsys.readouterr().err
  for name, said in (
    ("out.partial", "unfinished folders"),
    ("x" * 300, "its name is too long; choose a shorter one"),
  ):
    assert cli.main(["convert", "hf", str(folder), str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_sharded_folder_with_unneeded_tensors_is_converted(folder, tmp_path, capsys):
  """Shards, bfloat16, and buffers of old Llama checkpoints."""

  def change(tensors):
    tensors |= {name: x.astype(jnp.bfloat16) for name, x in tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

  with_tensors(folder, change)
  shard(folder)
  (folder / "chat_template.jinja").write_text("{{ messages }}")
  out = tmp_path / "a folder [of" / "mine]"  # looks like markup of rich; an empty folder is allowed
  out.mkdir(parents=True)
  assert cli.main(["convert", "hf", str(folder), str(out)]) == 0
  assert f"--workdir='{out}'" in capsys.readouterr().out, "the next command cannot be copied"
  kept = {"config.json", "tokenizer.json", "chat_template.jinja"}
  assert {file.name for file in (out / "hf").iterdir()} == kept
  run = json.loads((out / "run.json").read_text())["config"]["run"]
  assert run["param_dtype"] == run["compute_dtype"] == "bfloat16"


def test_one_whole_file_comes_before_shards_as_in_transformers(folder, tmp_path):
  whole = arrays(folder)
  shard(folder)
  save(folder / "model.safetensors", {name: array + 1 for name, array in whole.items()})
  read = read_folder(folder, None, quiet())
  norm = next(p for p in entries(read.model) if p.huggingface == NORM)
  np.testing.assert_array_equal(read.tensor(norm, 0), whole[NORM] + 1)


def test_one_tensor_of_another_type_makes_it_float32_and_a_tied_head_is_left_out(folder, tmp_path):
  def change(tensors):
    tensors |= {name: x.astype(jnp.bfloat16) for name, x in tensors.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors[NORM] = tensors[NORM].astype(np.float16)

  with_tensors(folder, change)
  edit(folder, tie_word_embeddings=True, max_position_embeddings=5000)
  assert cli.main(["convert", "hf", str(folder), str(tmp_path / "out")]) == 0
  made = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
  assert made["run"]["param_dtype"] == "float32" and made["model"]["tied_embeddings"]
  assert (made["model"]["segment_length"], made["evaluation"]["input_tokens"]) == (2048, 4096)


def test_bos_and_eos_are_those_of_the_file_that_is_closest_to_the_tokenizer(folder):
  raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [5, 1]}

  def marks(raw):
    tokenizer = find_tokenizer(folder, raw)
    return tokenizer.bos, tokenizer.eos

  assert marks(raw) == (1, 5), "config.json, the first of several"
  (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "a"}}')
  assert marks(raw) == (1, 3), "tokenizer_config.json comes first"
  (folder / "generation_config.json").write_text('{"bos_token_id": 4}')
  assert marks(raw) == (1, 3), "generation_config.json comes last"
  assert marks(raw | {"bos_token_id": None}) == (4, 3)


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(tmp_path):
  out = tmp_path / "out"
  with pytest.raises(ZeroDivisionError), building(out) as partial:
    (partial / "half").write_text("half")
    assert not out.exists()
    1 / 0  # noqa: B018
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "out.partial").mkdir()
  (tmp_path / "out.partial" / "old").write_text("of a process that was killed")
  with building(out) as partial:
    (partial / "new").write_text("whole")
    with pytest.raises(InputError, match="another process is writing it"), building(out):
      pass
  assert [p.name for p in out.iterdir()] == ["new"]
  with pytest.raises(InputError, match="needs 2,000,000,000,000 MB while it is written"):
    check_room(tmp_path, 10**18)


@pytest.mark.slow
@pytest.mark.parametrize(
  "function", ["infini_jax.convert.incoming._lay_down", "Checkpoints.save_params"]
)
def test_a_full_disk_is_reported_and_leaves_nothing(folder, tmp_path, function):
  """In a process that may write no file over 50,000 bytes from the call of a function on."""
  rng = np.random.default_rng(0)

  def larger(tensors):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
      tensors[name] = rng.standard_normal((3000, 8)).astype(np.float32)

  with_tensors(folder, larger)
  edit(folder, vocab_size=3000)
  owner, _, name = function.rpartition(".")
  code = (
    "import resource, signal, sys\n"
    "import infini_jax.convert.incoming\n"
    "from infini_jax import cli\n"
    "from infini_jax.runs.checkpoints import Checkpoints\n"
    f"whole = {function}\n"
    "def limited(*args):\n"
    "  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    "  return whole(*args)\n"
    f"{owner}.{name} = limited\n"
    "sys.exit(cli.main(['convert', 'hf', *sys.argv[1:]]))\n"
  )
  command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2, done.stderr
  assert "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
