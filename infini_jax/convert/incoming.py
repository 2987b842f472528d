"""Writes a run from imported weights of any format."""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from infini_jax.config import Config, DataConfig, FamilyConfig, ModelConfig, RunConfig, resolve
from infini_jax.convert.building import building, check_finite, check_room, lay_down
from infini_jax.convert.families import OF_FAMILY, OF_SIZES, write_config
from infini_jax.convert.layout import Entry, entries, gates, nested, parameter_shapes
from infini_jax.data import Tokenizer
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import ORIGINAL, Workdir

SEGMENT = 2048  # the largest N of a converted run
CHUNK = 8192  # the most tokens in a chunk of its evaluation
CONFIG_FILE = '''"""The config of this run, for eval.py: what run.json holds."""

import json
from pathlib import Path

from infini_jax.config import base_config


def get_config():
  config = base_config()
  config.update(json.loads((Path(__file__).parent / "run.json").read_text())["config"])
  return config
'''


class Incoming(NamedTuple):
  """A model that is to become a run.

  Attributes:
    model: the config of the model.
    tensor: reads and returns the tensor of an entry and a layer.
    gates_LH: the gates of the layers with a memory; None: the model has none.
    tokenizer: the tokenizer of the model.
    raw: the content of its `config.json`; None: there was none.
    positions: the longest text that it was trained on, in tokens.
    files: other files to keep for an export, by their names.
    format: the attribute of `Entry` with the names of the tensors.
  """

  model: ModelConfig
  tensor: Callable[[Entry, int], np.ndarray]
  gates_LH: np.ndarray | None
  tokenizer: Tokenizer
  raw: dict[str, Any] | None
  positions: int
  files: Mapping[str, Path]
  format: str = "huggingface"


def write_run(incoming: Incoming, out: Path, console: Console) -> None:
  """Writes a run whose checkpoint 0 holds the parameters.

  Raises:
    InputError: it cannot be written completely. Then nothing is left on disk.
  """
  out, model = out.absolute(), incoming.model
  config = _config(incoming)
  marks = {"bos_token_id": incoming.tokenizer.bos, "eos_token_id": incoming.tokenizer.eos}
  raw = incoming.raw or write_config(model, incoming.positions) | marks
  with building(out) as partial:
    incoming.tokenizer.save(partial / "tokenizer")
    (partial / ORIGINAL).mkdir()
    for name, file in incoming.files.items():
      shutil.copyfile(file, partial / ORIGINAL / name)
    (partial / ORIGINAL / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
    (partial / "config.py").write_text(CONFIG_FILE)
    Workdir(partial).claim(config, "converted")
    pieces = partial / "pieces"
    count = sum(math.prod(shape) for shape in parameter_shapes(model).values())
    size = count * jnp.dtype(model.run.param_dtype).itemsize
    check_room(partial, size)
    params = _lay_down(incoming, pieces, console)
    with track(console, f"write {size / 1e6:,.0f} MB"), Checkpoints(Workdir(partial)) as saved:
      saved.save_params(nested(params))
    del params
    shutil.rmtree(pieces)
  _show(incoming, raw["model_type"], count, size, out, console)


def _lay_down(incoming: Incoming, folder: Path, console: Console) -> dict[str, np.ndarray]:
  """Every parameter as an array mapped to a file."""
  model, found = incoming.model, entries(incoming.model)
  params: dict[str, np.ndarray] = {}
  done = 0
  with track(console, "read", sum(max(1, entry.layers) for entry in found)) as advance:

    def layers(entry):
      nonlocal done
      for layer in range(max(1, entry.layers)):
        name = getattr(entry, incoming.format).format(layer)
        yield name, entry.from_tensor(incoming.tensor(entry, layer))
        done += 1
        advance(done, entry.parameter)

    shapes = parameter_shapes(model)
    for entry in found:
      shape = shapes[entry.parameter]
      file = folder / entry.parameter
      params[entry.parameter] = lay_down(file, layers(entry), shape, model.run.param_dtype)
  if incoming.gates_LH is not None:
    check_finite("gates_LH", incoming.gates_LH, incoming.gates_LH)
    params[gates(model)] = incoming.gates_LH
  return params


def _config(incoming: Incoming) -> Config:
  """The config of the run: evaluates the original on texts as long as those it was trained on."""
  model, N = incoming.model, incoming.model.segment_length
  segments = max(1, min(CHUNK, incoming.positions) // N)
  whole = max(1, incoming.positions // N) * N
  evaluation: dict[str, Any] = {"lanes": 1, "segments": segments, "input_tokens": whole}
  if model.is_plain:
    evaluation["knock_out"] = ()  # it has no memory
  data = {"tokenizer": "run", "carry_state": not model.memory.grows}
  start = Config(model, DataConfig(carry_state=False))
  return resolve({"data": data, "evaluation": evaluation}, start)


def original_model(fields: dict[str, Any], positions: int, dtype: str) -> ModelConfig:
  """The model that a `config.json` describes, without a memory."""
  return ModelConfig(
    **{name: fields[name] for name in OF_SIZES},
    mixer="full",
    segment_length=min(SEGMENT, positions),
    family=FamilyConfig(**{name: fields[name] for name in OF_FAMILY}),
    run=RunConfig(param_dtype=dtype, compute_dtype=dtype),
  )


def with_memory(model: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
  """A model with the settings of a memory that were exported with its weights.

  Args:
    model: the model without a memory.
    settings: the sections `model` and of the memory system; they replace fields of `model`.
  """
  return resolve(settings, Config(model, DataConfig(carry_state=False))).model


def _show(
  incoming: Incoming, family: str, count: int, size: int, out: Path, console: Console
) -> None:
  model = incoming.model
  table = Table(title="converted")
  table.add_column("what")
  table.add_column("value", overflow="fold")
  table.add_row("family", f"{family}, mixer {model.title}")
  table.add_row("parameters", f"{count:,}")
  table.add_row("bytes", f"{size:,} as {model.run.param_dtype}")
  tokenizer = incoming.tokenizer
  marks = f"bos {tokenizer.bos}, eos {tokenizer.eos}"
  table.add_row("tokenizer", f"{tokenizer.size:,} ids, {marks}; {model.vocab_size:,} embeddings")
  table.add_row("longest text", f"{incoming.positions:,} tokens")
  table.add_row("run", str(out))
  console.print(table)
  typed = shlex.quote(str(out))
  console.print(
    f"Next: infini-jax generate --workdir={typed} --prompt='Once upon a time'\n"
    f"or    python eval.py --workdir={typed} --config.data.path=TEXTS\n"
    f"or    train with config.train.start_from={str(out)!r} (docs/convert.md)",
    highlight=False,
    soft_wrap=True,
  )
