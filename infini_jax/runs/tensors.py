"""Named arrays in safetensors files; the only file that imports the library.

No pickle is ever read. A safetensors file holds numbers and a text header, and no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from infini_jax.config import InputError
from infini_jax.files import atomic

DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}


CHECKSUM = "checksum"  # an array: the hash of the whole file with this array as zeros
HASH = 32  # bytes of the hash


class Tensors:
  """A safetensors file. The header is read immediately, an array only when `read` is called.

  Attributes:
    path: the path of the file.
    metadata: the text of the header, by name.
    shapes: the shape of each array, by name.
    dtypes: the type of each array, such as bfloat16, by name.

  Raises:
    InputError: there is no such file, or it is not complete.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)
    if not self.path.is_file():
      raise InputError(f"{path}: no such file")
    try:
      self._file: Any = safe_open(str(path), "numpy")
    except (SafetensorError, OSError) as error:
      raise InputError(
        f"{path}: not a whole safetensors file ({_text(error)}); copy or download it again"
      ) from None
    self.metadata: dict[str, str] = self._file.metadata() or {}
    slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
    self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    kinds = {name: part.get_dtype() for name, part in slices.items()}
    self.dtypes = {name: DTYPES.get(kind, kind) for name, kind in kinds.items()}

  def check(self) -> None:
    """Compares the whole file with its checksum.

    Raises:
      InputError: the file differs from what `save` wrote, or has no checksum.
    """
    if CHECKSUM not in self.shapes or self.read(CHECKSUM).tobytes() != _checksum(self.path)[1]:
      raise InputError(f"{self.path}: damaged, its checksum is wrong; copy or make it again")

  def read(self, name: str) -> np.ndarray:
    """Reads one array, and nothing else of the file.

    Raises:
      KeyError: there is no array of this name.
      InputError: numpy does not have its type.
    """
    if self.dtypes[name] not in DTYPES.values():
      raise InputError(f"{self.path}: {name} is of type {self.dtypes[name]}, which cannot be read")
    return self._file.get_tensor(name)


def save(
  path: str | Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
  *,
  checksum: bool = False,
) -> None:
  """Writes the file completely or not at all; a reader never sees a part of it.

  With `checksum`, an array of that name is added, for `Tensors.check`.

  Raises:
    InputError: the file cannot be written, for example because the disk is full.
  """
  path = Path(path)
  # The library writes the memory in its order, so the arrays must be contiguous.
  lying = {name: np.asarray(array, order="C") for name, array in arrays.items()}
  lying |= {CHECKSUM: np.zeros(HASH, np.uint8)} if checksum else {}
  try:
    with atomic(path) as temporary:
      save_file(lying, temporary, dict(metadata or {}))
      if checksum:
        offset, found = _checksum(temporary)
        with temporary.open("r+b") as file:
          file.seek(offset)
          file.write(found)
  except (SafetensorError, OSError) as error:
    raise InputError(
      f"{path}: cannot be written ({_text(error)}); make room there, or choose another path"
    ) from None


def _checksum(path: Path) -> tuple[int, bytes]:
  """The position of the checksum in a file, in bytes, and the value that it should have."""
  data = np.memmap(path, np.uint8, "r").data
  start = 8 + int.from_bytes(data[:8], "little")  # of the arrays, after the header
  header = json.loads(bytes(data[8:start]))
  offset = start + header[CHECKSUM]["data_offsets"][0]
  made = hashlib.blake2b(data[:offset], digest_size=HASH)
  made.update(bytes(HASH))
  made.update(data[offset + HASH :])
  return offset, made.digest()


def _text(error: Exception) -> str:
  return " ".join(str(error).split())
