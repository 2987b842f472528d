"""`infini-jax convert hf`: a Hugging Face folder becomes a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from infini_jax.config import SYSTEMS, InputError, ModelConfig, migrated
from infini_jax.convert.building import check_free
from infini_jax.convert.families import OURS, positions_of, read_config
from infini_jax.convert.hub import find_folder
from infini_jax.convert.incoming import Incoming, original_model, with_memory, write_run
from infini_jax.convert.layout import Entry, entries, gates, parameter_shapes
from infini_jax.convert.settings import unknown
from infini_jax.convert.vocabulary import find_tokenizer
from infini_jax.runs.tensors import Tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MEMORY = "infini.safetensors"  # gates and settings of a memory, in the folder of the weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Prefixes of the language model's tensors in models that also read pictures.
PREFIXES = {
  "language_model.model.": "model.",
  "model.language_model.": "model.",
  "language_model.lm_head.": "lm_head.",
}
OF_PICTURES = (
  *("vision_tower.", "multi_modal_projector."),
  *("model.vision_tower.", "model.multi_modal_projector."),
)
KEPT = 64 << 20  # bytes: only smaller files are copied into the run


def convert(name: str, out: Path, dtype: str | None, console: Console) -> None:
  """Makes a run from a folder, or from a model of the hub.

  Raises:
    InputError: something is missing, damaged or not supported. Then nothing is left on disk.
  """
  check_free(out)
  write_run(read_folder(find_folder(name), dtype, console), out, console)


def read_folder(folder: Path, dtype: str | None, console: Console) -> Incoming:
  """Reads and checks a folder, except for the values of its tensors.

  Raises:
    InputError: something is missing, damaged or not supported.
  """
  file = folder / "config.json"
  said = read_json(file)
  fields, raw = read_config(said, str(file))
  if strange := unknown(said | raw):
    console.print(
      f"{file}: no supported family has {', '.join(strange)}; ignored",
      highlight=False,
      soft_wrap=True,
    )
  weights = _Weights(folder)
  positions = positions_of(raw)
  model = original_model(fields, positions, dtype or weights.dtype())
  weights.check(model)
  gates_LH = None
  if (folder / MEMORY).exists():
    model, gates_LH = _memory(folder / MEMORY, model)
  tokenizer = find_tokenizer(folder, raw)
  files = {
    f.name: f
    for f in sorted(folder.iterdir())
    if f.suffix in (".json", ".jinja", ".model", ".txt") and f.is_file()
    if f.stat().st_size < KEPT
    if f.name not in ("config.json", INDEX)
  }
  return Incoming(model, weights.tensor, gates_LH, tokenizer, raw, positions, files)


def read_json(file: Path) -> dict[str, Any]:
  """Reads a JSON file whose content is an object.

  Raises:
    InputError: there is no such file, or its content is not a JSON object.
  """
  if not file.is_file():
    raise InputError(f"{file}: no such file; give a folder with config.json and *.safetensors")
  try:
    content = json.loads(file.read_text("utf-8"))
  except (ValueError, RecursionError, OSError) as error:
    raise InputError(f"{file}: cannot be read ({error}); copy or download it again") from None
  if not isinstance(content, dict):
    raise InputError(f"{file}: holds no JSON object; copy or download it again")
  return content


class _Weights:
  """The tensors of a folder, in one file or several."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._files: dict[str, Tensors] = {}  # by the tensor's name without its prefix
    self._names: dict[str, str] = {}  # the tensor's name in its file
    for file in self._shards():
      shard = Tensors(file)
      for name in shard.shapes:
        if _is_ignored(name):
          continue
        if twice := self._files.get(_plain(name)):
          raise InputError(
            f"{folder}: tensor {name} is there twice, in {twice.path.name} and in {file.name}; get "
            f"them again"
          )
        self._files[_plain(name)], self._names[_plain(name)] = shard, name
    unread = self._listed.keys() - set(self._names.values())
    if missing := sorted(name for name in unread if not _is_ignored(name)):
      raise InputError(f"{folder}: tensor {missing[0]} is not where {INDEX} says; get it again")

  def dtype(self) -> str:
    """The number type of the run: bfloat16 if all weights are, else float32."""
    kinds = {shard.dtypes[self._names[name]] for name, shard in self._files.items()}
    if strange := sorted(kinds - {"float64", "float32", "float16", "bfloat16"}):
      raise InputError(f"{self.folder}: weights of type {strange[0]} are not supported")
    return "bfloat16" if kinds == {"bfloat16"} else "float32"

  def check(self, model: ModelConfig) -> None:
    """Raises InputError for a tensor that is missing, unexpected, or of another shape."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if model.tied_embeddings and head in self._files:
      if not np.array_equal(self._read(head), self._read(embedding)):
        raise InputError(
          f"{self.folder}: tie_word_embeddings=true, but {head} is not {embedding}; set it false "
          f"in config.json"
        )
      self._files.pop(head)
    wanted = set()
    for entry in entries(model):
      for name in entry.names(entry.huggingface):  # can be very many; the first missing one raises
        if (found := self._shape(name)) != entry.tensor_shape:
          raise InputError(
            f"{self.folder}: tensor {name} is {found or 'missing'} where config.json needs "
            f"{entry.tensor_shape}; get both from the same model"
          )
        wanted.add(name)
    if unknown := sorted(self._files.keys() - wanted):
      raise InputError(
        f"{self.folder}: tensor {unknown[0]} does not belong to a model of this config.json; get "
        f"both from the same model"
      )

  def tensor(self, entry: Entry, layer: int) -> np.ndarray:
    """Reads one tensor of one layer."""
    return self._read(entry.huggingface.format(layer))

  def _read(self, name: str) -> np.ndarray:
    return self._files[name].read(self._names[name])

  def _shape(self, name: str) -> tuple[int, ...] | None:
    return self._files[name].shapes[self._names[name]] if name in self._files else None

  def _shards(self) -> list[Path]:
    folder = self.folder
    self._listed: Mapping[str, str] = {}
    if (folder / WEIGHTS).exists():  # it has priority over shards, as in transformers
      return [folder / WEIGHTS]
    if (folder / INDEX).exists():
      listed = read_json(folder / INDEX).get("weight_map")
      if not isinstance(listed, dict) or not all(map(_is_name, listed.values())):
        raise InputError(f"{folder / INDEX}: its weight_map names no files; download it again")
      self._listed = listed
      shards = [folder / name for name in sorted(set(listed.values()))]
      for file in shards:
        if not file.is_file():
          raise InputError(f"{file}: this shard, of {INDEX}, is missing; download it again")
      return shards
    if pickles := sorted(f.name for pattern in PICKLES for f in folder.glob(pattern)):
      raise InputError(
        f"{folder}: holds its weights as a pickle ({pickles[0]}), which can run anything and is "
        f"never loaded; have transformers save it with safe_serialization=True"
      )
    raise InputError(f"{folder}: holds no {WEIGHTS} and no {INDEX}; download the weights")


def _is_ignored(name: str) -> bool:
  """Whether a tensor is not a parameter of the language model."""
  return name.startswith(OF_PICTURES) or name.endswith("rotary_emb.inv_freq")


def _is_name(file: object) -> bool:
  """Whether this is the name of a file in the folder, not a path."""
  return isinstance(file, str) and Path(file).name == file != ""


def _plain(name: str) -> str:
  for prefix, plain in PREFIXES.items():
    if name.startswith(prefix):
      return plain + name.removeprefix(prefix)
  return name


def _memory(file: Path, model: ModelConfig) -> tuple[ModelConfig, np.ndarray | None]:
  """A model with the memory that was exported with its weights, and its gates."""
  opened = Tensors(file)
  try:
    settings = json.loads(opened.metadata["memory"])
    older = "mixer" in settings  # an older export has all fields in one object
    settings = migrated({"model": settings}) if older else settings
    settings.pop("run", None)  # a section of older exports
    names = settings["model"].get("pattern") or [settings["model"]["mixer"]]
    systems = [SYSTEMS[name] for name in names]
    if not all(one.exports for one in systems) or all(one.grows for one in systems):
      raise KeyError
    if settings.keys() - {"model", *names}:
      raise KeyError
    if settings["model"].keys() - set(OURS):
      raise KeyError
    model = with_memory(model, settings)
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError):
    raise InputError(
      f"{file}: not written by `infini-jax convert export`; remove it to convert without a memory"
    ) from None
  shape = parameter_shapes(model).get(gates(model))
  found = opened.shapes.get("gates_LH")
  if shape != found:
    raise InputError(f"{file}: gates are {found} where the model needs {shape}; export it again")
  return model, opened.read("gates_LH") if shape else None
