"""Where numbers go: JSON lines always, TensorBoard and wandb when asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.config import Config

COUNTS = ("gate_histogram",)  # histograms by themselves: for the JSON lines alone


class MetricWriter:
  """Writes scalars, vectors and histograms of a step to every open sink."""

  def __init__(self, folder: Path, config: Config):
    folder.mkdir(parents=True, exist_ok=True)
    self._file = open(folder / "metrics.jsonl", "a", buffering=1)
    self._tensorboard: Any = None
    self._wandb: Any = None
    if config.train.tensorboard:
      from tensorboardX import SummaryWriter

      self._tensorboard = SummaryWriter(str(folder / "tensorboard"))
    if config.train.wandb:
      import wandb

      self._wandb = wandb.init(
        project="infini_jax", dir=str(folder), config=json.loads(config.to_json()), resume="allow"
      )

  def write(self, step: int, values: dict[str, Any], prefix: str = "train") -> None:
    """Writes one step: numbers as they are; where a sink has histograms, lists become one, and
    lists of lists one for each layer.
    """
    self._file.write(json.dumps({"step": step, "kind": prefix, **values}) + "\n")
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
    if self._wandb is not None:
      self._wandb.log({f"{prefix}/{k}": v for k, v in values.items()}, step=step)

  def close(self) -> None:
    """Flushes and closes every sink."""
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()
    if self._wandb is not None:
      self._wandb.finish()


def read_metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
  """The lines of one kind that a run has written so far; a torn last line is left out."""
  file = folder / "metrics.jsonl"
  lines = []
  for text in file.read_text().splitlines() if file.exists() else []:
    try:
      lines.append(json.loads(text))
    except ValueError:
      continue
  return [line for line in lines if line["kind"] == kind]
