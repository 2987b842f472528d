"""Where numbers go: JSON lines always, TensorBoard and wandb when asked for."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.config import Config
from infini_jax.files import write_text

FILE = "metrics.jsonl"
WANDB = "wandb-id"  # of the run there
COUNTS = ("gate_histogram",)  # histograms by themselves: for the JSON lines alone
GATES = 512  # of a model, at most, each of which is a curve of its own


class MetricWriter:
  """Writes scalars, vectors and histograms of a step to every open sink.

  Args:
    folder: of the run.
    config: of the run.
    step: that the run goes on from. What a killed process wrote of later ones, they write again:
      it is taken out.
  """

  def __init__(self, folder: Path, config: Config, step: int):
    folder.mkdir(parents=True, exist_ok=True)
    _take_out(folder / FILE, step)
    self._file = open(folder / FILE, "a", buffering=1)
    self._tensorboard: Any = None
    self._wandb: Any = None
    if config.log.tensorboard:
      from tensorboardX import SummaryWriter

      self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
      indented = config.to_json().replace("\n", "\n    ")  # Markdown shows it as it is
      self._tensorboard.add_text("config", f"    {indented}", step + 1)
    if config.log.wandb:
      import wandb

      self._wandb = wandb.init(
        project="infini_jax",
        dir=str(folder),
        id=_wandb_id(folder / WANDB, step),
        resume="allow",
        config=json.loads(config.to_json()),
        allow_val_change=True,  # a run may go on with more steps
      )

  def write(self, step: int, values: dict[str, Any], prefix: str = "train") -> None:
    """Writes one step: numbers as they are; where a sink has histograms, lists become one, and
    lists of lists one for each layer. Each gate is a number too, unless there are very many.
    """
    self._file.write(json.dumps({"step": step, "kind": prefix, **values}) + "\n")
    gates = _gates(values.get("gates_LH"))
    if self._tensorboard is not None:
      for name, value in values.items():
        if name in COUNTS:
          continue
        if isinstance(value, list) and isinstance(value[0], list):
          for layer, row in enumerate(value):
            self._tensorboard.add_histogram(f"{prefix}/{name}/{layer + 1}", np.array(row), step)
        elif isinstance(value, list):
          self._tensorboard.add_histogram(f"{prefix}/{name}", np.array(value), step)
        elif value is not None:
          self._tensorboard.add_scalar(f"{prefix}/{name}", value, step)
      for name, gate in gates.items():
        self._tensorboard.add_scalar(name, gate, step)
    if self._wandb is not None:
      self._wandb.log({f"{prefix}/{k}": v for k, v in values.items()} | gates, step=step)

  def close(self) -> None:
    """Flushes and closes every sink."""
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()
    if self._wandb is not None:
      self._wandb.finish()


def _gates(gates_LH: Any) -> dict[str, float]:
  """Each gate by its layer and head, both counted from 1."""
  if not isinstance(gates_LH, list) or not isinstance(gates_LH[0], list):
    return {}
  if len(gates_LH) * len(gates_LH[0]) > GATES:
    return {}
  rows = enumerate(gates_LH, 1)
  return {f"gates/layer_{i}/head_{j}": g for i, row in rows for j, g in enumerate(row, 1)}


def _wandb_id(file: Path, step: int) -> str:
  """What names the run there: kept, so that it goes on as the same one, unless it begins anew."""
  given = os.environ.get("WANDB_RUN_ID")
  if given or step == 0 or not file.exists():
    file.write_text((given or secrets.token_hex(4)) + "\n")
  return file.read_text().strip()


def read_metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
  """The lines of one kind that a run has written so far; a torn last line is left out."""
  return [line for line in _lines(folder / FILE) if line["kind"] == kind]


def last_logged(folder: Path, step: int) -> dict[str, Any]:
  """What a run has written of training last, up to a step; nothing where there is nothing."""
  lines = [line for line in read_metrics(folder) if line["step"] <= step]
  return lines[-1] if lines else {}


def _lines(file: Path) -> list[dict[str, Any]]:
  lines = []
  for text in file.read_text().splitlines() if file.exists() else []:
    with contextlib.suppress(ValueError):
      lines.append(json.loads(text))
  return lines


def _take_out(file: Path, step: int) -> None:
  """Leaves whole lines alone, of steps up to this one."""
  kept = "".join(json.dumps(line) + "\n" for line in _lines(file) if line["step"] <= step)
  if file.exists() and kept != file.read_text():
    write_text(file, kept)
