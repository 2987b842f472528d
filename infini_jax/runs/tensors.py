"""Named arrays in files of safetensors: the one file that knows the library.

No pickle is ever read: such a file holds numbers and a header of text, and nothing that runs.
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


CHECKSUM = "checksum"  # an array: the hash of the whole file, in which it is 0 itself
HASH = 32  # bytes of it


class Tensors:
  """A file whose header is read at once, and each array when it is asked for.

  Attributes:
    path: the file.
    metadata: text by name, as it was saved.
    shapes: of each array.
    dtypes: the name of each array's type, such as bfloat16.

  Raises:
    InputError: no such file, or not a whole one.
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
    """Reads all of a file that was saved with a checksum.

    Raises:
      InputError: any bit of it is another than `save` wrote, or it has no checksum.
    """
    if CHECKSUM not in self.shapes or self.read(CHECKSUM).tobytes() != _checksum(self.path)[1]:
      raise InputError(f"{self.path}: damaged, its checksum is wrong; copy or make it again")

  def read(self, name: str) -> np.ndarray:
    """One array; nothing else of the file is read.

    Raises:
      KeyError: there is none of this name.
      InputError: of a type that numpy does not have.
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
  """Writes all of the file or nothing: a reader never sees half of it.

  With `checksum` an array of that name is added, for `Tensors.check`.

  Raises:
    InputError: it cannot be written, because the disk is full for one.
  """
  path = Path(path)
  # The library writes the memory as it lies: what is not contiguous would come out mixed up.
  lying = {name: np.asarray(array, order="C") for name, array in arrays.items()}
  lying |= {CHECKSUM: np.zeros(HASH, np.uint8)} if checksum else {}
  try:
    with atomic(path) as temporary:
      save_file(lying, temporary, dict(metadata or {}))
      if checksum:
        place, found = _checksum(temporary)
        with temporary.open("r+b") as file:
          file.seek(place)
          file.write(found)
  except (SafetensorError, OSError) as error:
    raise InputError(
      f"{path}: cannot be written ({_text(error)}); make room there, or choose another place"
    ) from None


def _checksum(path: Path) -> tuple[int, bytes]:
  """Where the checksum of a file stands, and what it should be."""
  data = np.memmap(path, np.uint8, "r").data
  start = 8 + int.from_bytes(data[:8], "little")  # of the arrays, behind the header
  header = json.loads(bytes(data[8:start]))
  place = start + header[CHECKSUM]["data_offsets"][0]
  made = hashlib.blake2b(data[:place], digest_size=HASH)
  made.update(bytes(HASH))
  made.update(data[place + HASH :])
  return place, made.digest()


def _text(error: Exception) -> str:
  return " ".join(str(error).split())
