"""`infini-jax convert export`: a run becomes a Hugging Face folder with its memory in a file."""

import dataclasses
import json
import math
import shlex
import shutil
from pathlib import Path
from types import EllipsisType
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax.config import SYSTEMS, InputError, ModelConfig
from infini_jax.convert import cards
from infini_jax.convert import memory as with_memory
from infini_jax.convert.building import building, check_free, check_room, lay_down
from infini_jax.convert.families import OURS, config_of
from infini_jax.convert.huggingface import INDEX, MEMORY, WEIGHTS, read_json
from infini_jax.convert.layout import Entry, entries, gates, nested, parameter_shapes
from infini_jax.data import SentencePieceTokenizer, Tokenizer, find_template
from infini_jax.data.tokenizers.templates import DEFAULT, TEMPLATE_FILE
from infini_jax.data.tokenizers.templates import FILE as CHAT
from infini_jax.models import merged
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.tensors import save
from infini_jax.runs.workdir import Workdir


def export(
  path: str,
  out: Path,
  max_shard_bytes: int,
  step: int | None,
  console: Console,
  ema: bool = False,
  memory: bool = False,
) -> None:
  """Makes a folder that transformers can load. Adapters are merged into their weights.

  Args:
    path: the folder of the run.
    out: the folder to make.
    max_shard_bytes: the largest size of one file of weights, in bytes.
    step: the step of the checkpoint; None: the newest.
    console: where progress is shown.
    ema: takes the moving average of the parameters, not their last values.
    memory: writes the memory too, with code in torch that transformers runs.

  Raises:
    InputError: no such run, checkpoint or average, no family fits the model, the code in torch
      does not have its memory system, or the disk is full.
  """
  check_free(out)
  run = Workdir(path)
  model = run.config().model
  (with_memory.check if memory else _check_without)(path, model)
  original = run.original()
  raw = {} if memory else _config(model, original)
  parameters, tokenizer = _Parameters(run, model, step, ema), run.load_tokenizer()
  if memory:
    digest = with_memory.checksum(parameters.shapes, parameters.stored)
    raw = with_memory.config_of(model, digest, tokenizer.fingerprint)
  card = cards.of_export(path, parameters.step, model, memory, tokenizer)
  with building(out) as partial:
    _copy_small(run, tokenizer, original, raw, partial)
    (partial / cards.FILE).write_text(card, "utf-8")
    pieces = partial / "pieces"
    check_room(partial, parameters.bytes())
    tensors = _lay_down(parameters, pieces, console)
    if memory:
      with_memory.write_code(partial, tokenizer.bos, tokenizer.eos)
      tensors |= with_memory.tensors(model, parameters.shapes, parameters.read)
    size = sum(tensor.nbytes for tensor in tensors.values())
    shards = _shards(tensors, max_shard_bytes)
    with track(console, "write", len(shards)) as advance:
      index: dict[str, str] = {}
      for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WEIGHTS
        save(partial / file, {name: tensors[name] for name in names}, {"format": "pt"})
        index |= dict.fromkeys(names, file)
        advance(i + 1)
    if len(shards) > 1:
      content = {"metadata": {"total_size": size}, "weight_map": index}
      _write_json(partial / INDEX, content)
    if not (memory or model.is_plain):
      _write_memory(parameters, partial / MEMORY)
    del tensors
    shutil.rmtree(pieces)
  _show(model, raw, parameters.step, size, len(shards), out, console)


def _check_without(path: str, model: ModelConfig) -> None:
  """Raises InputError if a model cannot be exported as a published architecture."""
  advice = "; infini-jax convert export --memory may do it"
  if not model.memory.exports:
    able = ", ".join(name for name, system in SYSTEMS.items() if system.exports)
    more = advice * model.memory.matrix
    raise InputError(f"{path}: config.{model.setting} cannot be exported; {able} can{more}")
  if setting := model.memory.not_exported():
    raise InputError(f"{path}: config.{setting} cannot be exported: no format can hold it{advice}")


def _config(model: ModelConfig, original: Path | None) -> dict[str, Any]:
  """The `config.json` of a published architecture, without the memory."""
  before = read_json(original / "config.json") if original else None
  raw = config_of(model, before, max(model.segment_length, 8192))
  raw["torch_dtype"] = model.run.param_dtype
  if "dtype" in raw:
    raw["dtype"] = model.run.param_dtype
  return raw


class _Parameters:
  """The parameters of a checkpoint, read one layer at a time."""

  def __init__(self, run: Workdir, model: ModelConfig, step: int | None, ema: bool):
    self.model = model
    with Checkpoints(run) as self._checkpoints:  # stored arrays can be read after it is closed
      self.step, self.shapes = self._checkpoints.chosen(step, ema), parameter_shapes(model)
    with self._checkpoints.reading(self.step):
      stored = self._checkpoints.stored
      self._arrays = {name: stored(name, self.step, ema) for name in self.shapes}
      self._dtypes = {name: stored(name, self.step).dtype.numpy_dtype for name in self.shapes}

  def bytes(self) -> int:
    """The size of all tensors in bytes."""
    count = sum(max(1, p.layers) * math.prod(p.shape) for p in entries(self.model))
    return count * jnp.dtype(self.model.run.param_dtype).itemsize

  def read(self, name: str, layer: int | EllipsisType = ...) -> np.ndarray:
    """A parameter, or one layer of it, with its adapter merged and the factor of logits in it."""
    value = self.stored(name, layer)
    if name == "final_norm.scale_E":
      return self._for_head(value)
    weight = name.rpartition(".")[2]
    adapter = f"blocks.attention.lora_{weight.split('_')[1]}."
    adapters = [other for other in self.shapes if other.startswith(adapter)]
    if not weight.startswith("w_") or not adapters:
      return value
    parts = {other: self.stored(other, layer) for other in adapters}
    together = {n: jnp.asarray(part) for n, part in (parts | {name: value}).items()}
    _, tree = merged(self.model, nested(together))
    return np.asarray(tree["blocks"]["attention"][weight])

  def _for_head(self, scale_E: np.ndarray) -> np.ndarray:
    """The scale of the last norm, which multiplies logits as `width_ratio` does."""
    ratio, one = self.model.width_ratio, float(self.model.family.norm_plus_one)
    if ratio == 1:
      return scale_E
    return ((scale_E.astype(np.float32) + one) * ratio - one).astype(scale_E.dtype)

  def stored(self, name: str, layer: int | EllipsisType = ...) -> np.ndarray:
    """A parameter, or one layer of it, as the checkpoint has it."""
    with self._checkpoints.reading(self.step):
      value = self._arrays[name][layer].read().result()
    return value.astype(self._dtypes[name], copy=False)


def _lay_down(parameters: _Parameters, folder: Path, console: Console) -> dict[str, np.ndarray]:
  """Every tensor as an array mapped to a file; the tensors of one layer follow each other."""
  found, dtype = entries(parameters.model), parameters.model.run.param_dtype
  tensors: dict[str, np.ndarray] = {}
  done = 0
  with track(console, "read", sum(max(1, entry.layers) for entry in found)) as advance:
    for entry in found:
      for layer, name in enumerate(entry.names(entry.huggingface)):
        value = parameters.read(entry.parameter, layer if entry.layers else ...)
        layers = [(name, entry.to_tensor(value))]
        tensors[name] = lay_down(folder / name, layers, entry.tensor_shape, dtype)
        done += 1
        advance(done, entry.parameter)
  order = {name: i for i, name in enumerate(_in_order(found))}
  return dict(sorted(tensors.items(), key=lambda item: order[item[0]]))


def _in_order(found: list[Entry]) -> list[str]:
  """Tensor names in the order of the files: embedding, layers, the rest."""
  stacked = [entry.names(entry.huggingface) for entry in found if entry.layers]
  alone = sorted(entry.huggingface for entry in found if not entry.layers)
  alone.sort(key=lambda name: "embed" not in name)
  return [*alone[:1], *(name for layer in zip(*stacked, strict=True) for name in layer), *alone[1:]]


def _shards(tensors: dict[str, np.ndarray], most: int) -> list[list[str]]:
  """The tensors of each file: at most `most` bytes, but at least one tensor."""
  shards: list[list[str]] = [[]]
  size = 0
  for name, tensor in tensors.items():
    if shards[-1] and size + tensor.nbytes > most:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += tensor.nbytes
  return shards


def _write_memory(parameters: _Parameters, file: Path) -> None:
  m = parameters.model
  settings = {
    "model": {name: getattr(m, name) for name in OURS if name != "pattern" or m.pattern},
    **{name: dataclasses.asdict(own.memory) for name, own in m.by_system.items()},
  }
  found = {"gates_LH": parameters.read(path)} if (path := gates(m)) else {}
  save(file, found, {"memory": json.dumps(settings)})


def _copy_small(
  run: Workdir, tokenizer: Tokenizer, original: Path | None, raw: dict[str, Any], out: Path
) -> None:
  """Copies the tokenizer and the small files that were imported with the weights."""
  for folder in (run.tokenizer, original):
    for file in sorted(folder.iterdir()) if folder else ():
      if file.name not in ("config.json", "tokenizer.marks.json", CHAT):
        shutil.copyfile(file, out / file.name)
  text = tokenizer.template.texts.get(DEFAULT) if tokenizer.template else None
  there = find_template(out)
  if text is not None and (there is None or there.texts.get(DEFAULT) != text):
    (out / TEMPLATE_FILE).write_text(text, "utf-8")
  for name, id in (("bos_token_id", tokenizer.bos), ("eos_token_id", tokenizer.eos)):
    raw.setdefault(name, id)
  if not (out / "tokenizer_config.json").exists() and (said := _describe(tokenizer, out)):
    _write_json(out / "tokenizer_config.json", said)
  _write_json(out / "config.json", raw)


def _describe(tokenizer: Tokenizer, out: Path) -> dict[str, Any] | None:
  """The `tokenizer_config.json` of a tokenizer: its class, bos and eos."""
  if isinstance(tokenizer, SentencePieceTokenizer):
    first = tokenizer.piece(int(tokenizer.encode("a")[0]))
    return {
      "tokenizer_class": "LlamaTokenizer",
      "legacy": False,
      "add_prefix_space": first.startswith("\u2581"),
      "add_bos_token": True,  # a document begins with it; the defaults of versions differ
      "add_eos_token": False,
      "bos_token": tokenizer.piece(tokenizer.bos),
      "eos_token": tokenizer.piece(tokenizer.eos),
    }
  if not (out / "tokenizer.json").exists():
    return None  # transformers has no byte tokenizer
  added = json.loads((out / "tokenizer.json").read_text("utf-8")).get("added_tokens", [])
  names = {token["id"]: token["content"] for token in added}
  marks = {"bos_token": names.get(tokenizer.bos), "eos_token": names.get(tokenizer.eos)}
  return {"tokenizer_class": "PreTrainedTokenizerFast", **marks}


def _write_json(file: Path, content: dict[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _show(
  model: ModelConfig,
  raw: dict[str, Any],
  step: int,
  size: int,
  files: int,
  out: Path,
  console: Console,
) -> None:
  table = Table(title="exported")
  table.add_column("what")
  table.add_column("value", overflow="fold")
  table.add_row("family", raw["model_type"])
  table.add_row("step", str(step))
  table.add_row("bytes", f"{size:,} as {model.run.param_dtype}, in {files} file{'s' * (files > 1)}")
  is_whole = "auto_map" in raw
  where = "modeling_infini.py, in torch" if is_whole else MEMORY
  table.add_row("memory", "none" if model.is_plain else f"mixer {model.title}, in {where}")
  table.add_row("folder", str(out))
  console.print(table)
  load = "transformers.AutoModelForCausalLM.from_pretrained"
  again = f"infini-jax convert hf {shlex.quote(str(out))} RUN, with the memory"
  following = (
    f"Next: {load}({str(out)!r}, trust_remote_code=True)"
    if is_whole
    else f"Next: {load}({str(out)!r}), without the memory\nor    {again}"
  )
  console.print(following, highlight=False, soft_wrap=True)
