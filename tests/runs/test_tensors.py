"""Arrays are read as they were saved. Damaged files are refused, incomplete ones never exist."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.runs.tensors import Tensors, save


def test_arrays_come_back_bit_by_bit(rng, tmp_path):
  x = rng.standard_normal((3, 4)).astype(np.float32)
  arrays = {
    "plain": x,
    "turned": x.T,  # not contiguous
    "bfloat16": x.astype(jnp.bfloat16),
    "scalar": np.array(7, np.int32),
    "none": np.zeros((0, 2), np.float32),
    "flag": np.array([True, False]),
  }
  file = tmp_path / "made" / "a.safetensors"
  save(file, arrays, {"model": "a name", "position": "12"})
  back = Tensors(file)
  assert back.metadata == {"model": "a name", "position": "12"}
  assert back.shapes == {name: array.shape for name, array in arrays.items()}
  assert back.dtypes == {name: array.dtype.name for name, array in arrays.items()}
  for name, array in arrays.items():
    np.testing.assert_array_equal(back.read(name), array, strict=True, err_msg=name)
  assert [f.name for f in file.parent.iterdir()] == ["a.safetensors"], "a temporary file is left"
  with pytest.raises(KeyError):
    back.read("other")


@pytest.mark.parametrize("keep", [-1, 40, 4, 0])
def test_a_file_cut_short_is_refused(rng, tmp_path, keep):
  file = tmp_path / "a.safetensors"
  save(file, {"x": rng.standard_normal(9)})
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(InputError, match="not a whole safetensors file.*download it again") as error:
    Tensors(file)
  assert "\n" not in str(error.value)


def test_a_checksum_shows_any_change(tmp_path):
  file = tmp_path / "a.safetensors"
  save(file, {"x": np.arange(3), "y": np.zeros(2, np.uint8)}, {"a": "b"}, checksum=True)
  Tensors(file).check()
  whole = file.read_bytes()
  for place in range(len(whole)):
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 32]) + whole[place + 1 :])
    with pytest.raises(InputError, match="not a whole safetensors file|checksum is wrong"):
      Tensors(file).check()
  save(file, {"x": np.arange(3)})
  with pytest.raises(InputError, match="checksum is wrong"):
    Tensors(file).check()


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match="none.safetensors: no such file"):
    Tensors(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path):
  """In a separate process that may write no file over 2,000 bytes."""
  file = tmp_path / "a.safetensors"
  save(file, {"x": np.arange(3)})
  code = (
    "import resource, signal, sys, numpy as np\n"
    "from infini_jax.runs.tensors import save\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    "save(sys.argv[1], {'x': np.zeros(100_000)})\n"
  )
  done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
  assert "InputError" in done.stderr and "cannot be written" in done.stderr, done.stderr
  np.testing.assert_array_equal(Tensors(file).read("x"), np.arange(3))
  assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"], "half a file is left"
