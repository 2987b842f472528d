"""A model with its memory as a folder for transformers: config, tensors, and the code in torch.

The code is `convert/torch_model/`, which is copied. It is not part of the package: nothing imports
it here.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from infini_jax.config import SYSTEMS, InputError, ModelConfig
from infini_jax.convert.families import WITH_MEMORY, sizes_of
from infini_jax.models.mixers import MIXERS

CODE = Path(__file__).parent / "torch_model"
CLASSES = {"AutoConfig": "InfiniConfig", "AutoModelForCausalLM": "InfiniForCausalLM"}
PIECE = 1 << 22  # values of a parameter that are summed at a time
Read = Callable[[str, int | EllipsisType], np.ndarray]  # a parameter, and one layer of it or all


def check(path: str, model: ModelConfig) -> None:
  """Raises InputError if a memory system of the model cannot be written in torch."""
  for own in model.by_system.values():
    if not own.memory.in_torch:
      *able, last = (name for name, system in SYSTEMS.items() if system.in_torch)
      raise InputError(
        f"{path}: config.{model.setting} cannot be exported with --memory: the code in torch has "
        f"{', '.join(able)} and {last} layers; leave --memory out, or export another run"
      )


def config_of(model: ModelConfig, parameters: str, tokenizer: str) -> dict[str, Any]:
  """The `config.json`.

  Args:
    model: the config of the model.
    parameters: the checksum of its parameters, as in the header of a state.
    tokenizer: the fingerprint of its tokenizer, likewise.
  """
  systems: dict[str, Any] = {}
  order = model.pattern or (model.mixer,)
  for name, own in model.by_system.items():
    if not own.memory.matrix:
      systems[name] = None
      continue
    rank = own.memory.adapter_rank
    scale = model.adapters.alpha / rank if rank else 0.0
    more = {"learned_decay": own.memory.learned_decay, "adapter_scale": scale}
    systems[name] = dataclasses.asdict(own.memory) | more
  return {
    "architectures": [CLASSES["AutoModelForCausalLM"]],
    "auto_map": {auto: f"modeling_infini.{name}" for auto, name in CLASSES.items()},
    "model_type": WITH_MEMORY,
    **sizes_of(model),
    "tie_word_embeddings": model.tied_embeddings,
    "torch_dtype": model.run.param_dtype,
    "segment_length": model.segment_length,
    "activation": model.activation,
    "family": dataclasses.asdict(model.family),
    "mixers": [order[layer % len(order)] for layer in range(model.layers)],
    "systems": systems,
    "parameters": parameters,
    "tokenizer": tokenizer,
  }


def tensors(model: ModelConfig, names: Iterable[str], read: Read) -> dict[str, np.ndarray]:
  """The tensors of the memory in all layers, float32.

  Args:
    model: the config of the model.
    names: the names of all parameters.
    read: reads a layer of a parameter.
  """
  made = {}
  mixer = "blocks.attention.mixer."
  for parameter in (name.removeprefix(mixer) for name in names if name.startswith(mixer)):
    system, _, own = parameter.partition(".") if model.pattern else (model.mixer, "", parameter)
    name, turned = MIXERS[system].tensors[own]
    for place, layer in enumerate(model.layers_of(system)):
      value = read(mixer + parameter, place).astype(np.float32)
      if turned:  # (in, out...) to (out, in)
        value = value.reshape(value.shape[0], -1).T
      made[f"model.layers.{layer}.self_attn.memory.{name}"] = value
  return made


def checksum(shapes: Mapping[str, tuple[int, ...]], read: Read) -> str:
  """`inference.engine.checksum` of parameters that are read one layer at a time.

  Args:
    shapes: the shape of each parameter, by its name, in the order of the tree.
    read: reads a layer of a parameter, or all of it.
  """

  def one(name: str) -> int:
    total, start = 0, 0
    layers = range(shapes[name][0]) if name.startswith("blocks.") else (...,)
    for part in (read(name, layer) for layer in layers):
      bits = np.ascontiguousarray(part).reshape(-1).view(f"u{part.dtype.itemsize}")
      for piece in np.split(bits, range(PIECE, bits.size, PIECE)):
        odd = 2 * np.arange(start, start + piece.size, dtype=np.uint64) + 1
        total += int((piece.astype(np.uint64) * odd).sum(dtype=np.uint64))
        start += piece.size
    return total % 2**32

  return "".join(f"{one(name):08x}" for name in shapes)


def write_code(out: Path, bos: int, eos: int) -> None:
  """Copies the code in torch, and says which tokens begin and end a text."""
  for file in sorted(CODE.glob("*.py")):
    shutil.copyfile(file, out / file.name)
  if not (there := out / "generation_config.json").exists():
    there.write_text(json.dumps({"bos_token_id": bos, "eos_token_id": eos}, indent=2) + "\n")
