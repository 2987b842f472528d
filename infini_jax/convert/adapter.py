"""`infini-jax convert adapter` and `adapt`: parameters that training added, to a file and back.

A file holds the parameters that the original does not have: low-rank adapters, gates, write gates.
Its header holds the config of the model, and a checksum of the original's parameters.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table

from infini_jax.config import SYSTEMS, Config, InputError, migrated, resolve
from infini_jax.convert import cards
from infini_jax.convert.building import building, check_free
from infini_jax.convert.incoming import CONFIG_FILE
from infini_jax.convert.layout import nested, parameter_shapes
from infini_jax.data import Tokenizer
from infini_jax.inference.saved import open_run
from infini_jax.models import param_shapes
from infini_jax.runs import tensors
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import ORIGINAL, Workdir

FILE = "adapter.safetensors"
HEADER = "infini_jax adapter 1"
PARTS = ("lora", "gates")  # values of train.part that add parameters and change no others
# Sections of the config that describe the model and its evaluation.
KEPT = ("model", "family", *SYSTEMS, "adapters", "run", "task", "needle", "evaluation")


def save(
  path: str, out: Path, step: int | None, dtype: str, console: Console, ema: bool = False
) -> None:
  """Writes the parameters that training added to `OUT/adapter.safetensors`.

  Args:
    path: the folder of the run.
    out: the folder to make.
    step: the step of the checkpoint; None: the newest.
    dtype: the number type in the file.
    console: where the table is printed.
    ema: takes the moving average of the parameters, not their last values.

  Raises:
    InputError: no such run, checkpoint or average, or training changed parameters of the original.
  """
  check_free(out)
  run = Workdir(path)
  config = run.config()
  start, part = config.train.start_from, config.train.part
  if not start or part not in PARTS:
    raise InputError(
      f"{path}: config.train.part={part!r} of a run that starts from {start or 'nothing'!r}: an "
      f"adapter is what {' or '.join(PARTS)} added to another run; take infini-jax convert export"
    )
  original = open_run(_original(start))
  added = parameter_shapes(config.model).keys() - flatten_dict(original.engine.params, sep=".")
  with Checkpoints(run) as saved:
    found = saved.chosen(step, ema)
    with saved.reading(found):
      read = {name: saved.stored(name, found, ema).read().result() for name in sorted(added)}
  arrays = {name: value.astype(jax.numpy.dtype(dtype)) for name, value in read.items()}
  header = {
    "original": original.engine.checksum,
    "step": found,
    "config": described(config),
  }
  card = cards.of_adapter(path, found)
  with building(out) as partial:
    tensors.save(partial / FILE, arrays, {HEADER: json.dumps(header)}, checksum=True)
    (partial / cards.FILE).write_text(card, "utf-8")
  table = Table(title="adapter")
  table.add_column("what")
  table.add_column("value", overflow="fold")
  table.add_row("parameters", f"{sum(x.size for x in arrays.values()):,} as {dtype}")
  table.add_row("bytes", f"{(out / FILE).stat().st_size:,}")
  table.add_row("of", f"{path}, step {found:,}")
  table.add_row("file", str(out / FILE))
  console.print(table)


def _original(start: str) -> str:
  """The original run: follows `start_from` through runs that themselves only added parameters."""
  seen: set[str] = set()
  while start not in seen and (there := Workdir(start).config().train).part in PARTS:
    seen.add(start)
    start = there.start_from or start
  return start


def adapt(path: str, adapter: Path, out: Path, console: Console) -> None:
  """Makes a run from an original and an adapter.

  Args:
    path: the folder of the run that the adapter belongs to.
    adapter: the folder of the adapter, or the file in it.
    out: the folder to make.
    console: where the next command is printed.

  Raises:
    InputError: the file is not an adapter, is damaged, or belongs to another model.
  """
  check_free(out)
  out, file = out.absolute(), adapter / FILE if adapter.is_dir() else adapter
  opened = tensors.Tensors(file)
  if HEADER not in opened.metadata:
    raise InputError(f"{file}: not an adapter; infini-jax convert adapter makes one")
  opened.check()
  header = json.loads(opened.metadata[HEADER])
  older = {name: header[name] for name in ("model", "task", "evaluation") if name in header}
  header.setdefault("config", older)
  original = open_run(path)
  if (found := original.engine.checksum) != header["original"]:
    raise InputError(
      f"{file}: an adapter of other parameters than those of {path} ({header['original']:.8}, "
      f"these are {found:.8}); convert the model that its card names, with the same --dtype"
    )
  config = _config(header["config"])
  names = (name for name in opened.shapes if name != tensors.CHECKSUM)
  before = flatten_dict(jax.device_get(original.engine.params), sep=".")
  params: dict[str, np.ndarray] = before | {name: opened.read(name) for name in names}
  shapes = parameter_shapes(config.model)
  wrong = [n for n, shape in shapes.items() if n not in params or params[n].shape != shape]
  if wrong or len(params) != len(shapes):
    raise InputError(f"{file}: does not fit its own config ({', '.join(wrong)}); make it again")
  own = flatten_dict(param_shapes(config.model), sep=".")
  cast = {name: value.astype(own[name].dtype) for name, value in params.items()}
  write_model(header["config"], nested(cast), original.tokenizer, path, out)
  console.print(
    f"adapted: {out}\nNext: python eval.py --workdir={out}", highlight=False, soft_wrap=True
  )


def described(config: Config) -> dict[str, Any]:
  """The sections of a config that describe a model and its evaluation, for `write_model`."""
  config = config.with_fields(task={"text_lanes": 0})  # the new run has no corpus
  return {name: section for name, section in json.loads(config.to_json()).items() if name in KEPT}


def write_model(
  given: dict[str, Any], params: Any, tokenizer: Tokenizer, origin: str, out: Path
) -> None:
  """Writes a run whose checkpoint 0 holds these parameters.

  Args:
    given: the sections of its config, from `described`.
    params: the parameters, as nested dicts.
    tokenizer: the tokenizer of the run.
    origin: the folder of the run that it comes from; the small files of its import are copied.
    out: the folder to make.

  Raises:
    InputError: it cannot be written completely. Then nothing is left on disk.
  """
  with building(out) as partial:
    tokenizer.save(partial / "tokenizer")
    if files := Workdir(origin).original():
      shutil.copytree(files, partial / ORIGINAL)
    (partial / "config.py").write_text(CONFIG_FILE)
    Workdir(partial).claim(_config(given), "converted")
    with Checkpoints(Workdir(partial)) as saved:
      saved.save_params(params)


def _config(given: dict[str, Any]) -> Config:
  """The config of the new run: the model, and how it was evaluated."""
  given = migrated(given)
  found = resolve(given | {"data": {"tokenizer": "run", "carry_state": False}})
  alone = found.task.kind.asks or found.model.memory.grows
  return found.with_fields(data={"carry_state": not alone})
