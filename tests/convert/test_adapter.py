"""Parameters that training added are saved in a small file, and can be added to the same model."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.convert.adapter import FILE, adapt, save
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.step import TrainState
from infini_jax.training.trainable import join, split
from tests.convert.reading import console, params_of
from tests.tiny import changed, config, fake_params, write_original

MODEL = {"kv_heads": 1, "gate_init": -5.0, "lora_rank": 3, "write_gate": True, "adapter_rank": 2}


def make(folder, rng, part="lora", **more):
  """The folders of an original and of a run that added parameters to it."""
  plain = config(model={"kv_heads": 1})
  original, run = folder / "original", folder / f"run-{part}"
  if not original.exists():
    write_original(original, plain)
  c = config(model=MODEL | more, data={"carry_state": not more})
  c = changed(c, train=changed(c.train, start_from=str(original), part=part))
  Workdir(run).claim(c, "a corpus")
  ByteTokenizer().save(Workdir(run).tokenizer)
  params = flatten_dict(jax.device_get(fake_params(c.model, int(rng.integers(1000)))), sep=".")
  params |= flatten_dict(jax.device_get(params_of(original)[1]), sep=".")
  from infini_jax.convert.layout import nested

  with Checkpoints(Workdir(run)) as saved:
    saved.save_params(nested(params))
  return original, run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_comes_back_from_its_original_and_a_small_file(tmp_path, rng, dtype):
  original, run = make(tmp_path, rng)
  save(str(run), tmp_path / "adapter", None, dtype, console())
  adapt(str(original), tmp_path / "adapter", tmp_path / "back", console())
  (model, want, _), (again, found, _) = params_of(run), params_of(tmp_path / "back")
  assert again == model
  want, found = (flatten_dict(jax.device_get(tree), sep=".") for tree in (want, found))
  before = flatten_dict(jax.device_get(params_of(original)[1]), sep=".")
  assert want.keys() == found.keys() > before.keys()
  for name, value in want.items():
    close = {} if dtype == "float32" or name in before else {"rtol": 2.0**-8}
    assert found[name].dtype == value.dtype
    np.testing.assert_allclose(found[name], value, **({"rtol": 0} | close), err_msg=name)
  size = (tmp_path / "adapter" / FILE).stat().st_size
  added = sum(x.size for name, x in want.items() if name not in before)
  assert size < added * (4 if dtype == "float32" else 2) + 8_000, "more is in it than was added"


def test_the_adapter_of_a_pattern_holds_the_gates_of_its_memory_layers(tmp_path, rng):
  original, run = make(tmp_path, rng, "gates", pattern=("infini", "full"), lora_rank=0)
  save(str(run), tmp_path / "adapter", None, "float32", console())
  adapt(str(original), tmp_path / "adapter", tmp_path / "back", console())
  (model, want, _), (again, found, _) = params_of(run), params_of(tmp_path / "back")
  assert again == model and model.pattern == ("infini", "full")
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (want, found)))


def test_commands_take_the_moving_average_of_what_was_trained(tmp_path, rng, capsys):
  """Its adapter, and the weights that hold it, are those of a run with these parameters."""
  original, run = make(tmp_path, rng)
  given = ["convert", "adapter", str(run), str(tmp_path / "none"), "--ema"]
  for command in (given, ["convert", "merge", *given[2:]]):
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "holds no moving average of the parameters; leave --ema out" in error
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()
  c, (_, params, _) = Workdir(run).config(), params_of(run)
  trained, frozen = split(c, params)
  mean = jax.tree.map(lambda x: 0.5 * x, trained)
  last = TrainState(jnp.ones((), jnp.int32), params, None, None, None, ema=mean)
  alone = shutil.copytree(run, tmp_path / "alone")
  shutil.rmtree(alone / "checkpoints")
  for folder, step in ((run, last), (alone, dataclasses.replace(last, params=join(mean, frozen)))):
    with Checkpoints(Workdir(folder)) as saved:
      saved.save(1, step)
  for kind in ("adapter", "merge"):
    for folder, more in ((run, ["--ema"]), (alone, [])):
      out = tmp_path / f"{kind}-{folder.name}"
      assert cli.main(["convert", kind, str(folder), str(out), *more]) == 0
      capsys.readouterr()
      if kind == "adapter":
        adapt(str(original), out, tmp_path / f"back-{folder.name}", console())
  for kind in ("back", "merge"):
    got, want = (
      jax.device_get(params_of(tmp_path / f"{kind}-{folder.name}")[1]) for folder in (run, alone)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_file_that_is_not_an_adapter_of_this_model_is_refused(tmp_path, rng):
  original, run = make(tmp_path, rng)
  save(str(run), tmp_path / "adapter", None, "float32", console())
  other = tmp_path / "other"
  write_original(other, config(model={"kv_heads": 1}))
  params = jax.tree.map(lambda x: x * 1.5, jax.device_get(params_of(other)[1]))
  with Checkpoints(Workdir(tmp_path / "changed")) as saved:
    Workdir(tmp_path / "changed").claim(Workdir(other).config(), "converted")
    ByteTokenizer().save(Workdir(tmp_path / "changed").tokenizer)
    saved.save_params(params)
  file = tmp_path / "adapter" / FILE
  damaged = bytearray(file.read_bytes())
  damaged[-5] ^= 4
  (tmp_path / "damaged.safetensors").write_bytes(damaged)
  _, whole = make(tmp_path, rng, part="all")
  out = tmp_path / "out"
  for wrong, match in (
    (
      lambda: adapt(str(tmp_path / "changed"), tmp_path / "adapter", out, console()),
      "of other par",
    ),
    (lambda: adapt(str(original), tmp_path / "damaged.safetensors", out, console()), "damaged"),
    (lambda: adapt(str(original), tmp_path / "nothing", out, console()), "no such file"),
    (lambda: save(str(whole), out, None, "float32", console()), "part='all' of a run that starts"),
    (lambda: save(str(original), out, None, "float32", console()), "starts from 'nothing'"),
    (lambda: save(str(run), out, 7, "float32", console()), "no checkpoint of step 7"),
  ):
    with pytest.raises(InputError, match=match) as error:
      wrong()
    assert "\n" not in str(error.value) and not out.exists()
