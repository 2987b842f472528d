"""Reads the file of a saved state (`Session.save` of infini_jax); it needs numpy alone.

The file is a safetensors file: 8 bytes with the length of a JSON header, the header, the arrays.
`docs/inference.md` of infini_jax describes what it holds.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KIND, FORMAT = "infini_jax state ", "2"
TYPES = {"F32": np.float32, "I32": np.int32, "U8": np.uint8, "BF16": np.uint16, "BOOL": np.bool_}
HASH = 32  # bytes of the checksum


class State(NamedTuple):
  """A saved state of B lanes (texts).

  Attributes:
    header: the config, checksum and step of its model, and the position of each lane.
    arrays: by name; those of the stream have the layers in front. bfloat16 becomes float32.
    unread: the tokens of each lane that the arrays do not hold yet.
  """

  header: dict[str, Any]
  arrays: dict[str, np.ndarray]
  unread: list[list[int]]


def read_state(path: str | Path, parameters: str = "", tokenizer: str = "") -> State:
  """Reads a state.

  Args:
    path: the file.
    parameters: the checksum of the model's parameters (`parameters` in its config.json); empty:
      the state of any model is read.
    tokenizer: the fingerprint of its tokenizer, likewise.

  Raises:
    ValueError: the file is not a state, is damaged, or is a state of another model or tokenizer.
  """
  data = Path(path).read_bytes()
  try:
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:start])
    metadata = tensors.pop("__metadata__")
  except (ValueError, KeyError, TypeError, AttributeError):
    raise ValueError(f"{path}: no whole state; give a file that Session.save has written") from None
  if f"{KIND}{FORMAT}" not in metadata or "checksum" not in tensors:
    raise ValueError(f"{path}: not a state of format {FORMAT}; load and save it in infini_jax")
  offset = start + tensors.pop("checksum")["data_offsets"][0]
  zeroed = data[:offset] + bytes(HASH) + data[offset + HASH :]
  if data[offset : offset + HASH] != hashlib.blake2b(zeroed, digest_size=HASH).digest():
    raise ValueError(f"{path}: damaged, its checksum is wrong; copy or make it again")
  header = json.loads(metadata[f"{KIND}{FORMAT}"])
  for name, own in (("parameters", parameters), ("tokenizer", tokenizer)):
    if own and header[name] != own:
      raise ValueError(
        f"{path}: a state of other {name} than this model's ({header[name]:.8}, not {own:.8}); "
        f"export the run that it is of: {header['workdir']}, step {header['step']}"
      )

  def array(kind, shape, begin, end):
    found = np.frombuffer(data[start + begin : start + end], TYPES[kind]).reshape(shape)
    return (found.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else found

  arrays = {n: array(x["dtype"], x["shape"], *x["data_offsets"]) for n, x in tensors.items()}
  ends = np.cumsum(header["unread"])[:-1]
  return State(header, arrays, [x.tolist() for x in np.split(arrays["unread"], ends)])
