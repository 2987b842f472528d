"""The metrics of a run: as JSON lines, and also to TensorBoard and wandb as the config sets."""

import contextlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from infini_jax.config import Config
from infini_jax.files import write_text

LOGGER = logging.getLogger("infini_jax")
FILE = "metrics.jsonl"
WANDB = "wandb-id"  # the file with the run's id at wandb
COUNTS = ("gate_histogram",)  # these are histograms already: for the JSON lines only
GATES = 512  # the most gates of a model for which each gate has its own curve


class MetricWriter:
  """Writes scalars, vectors and histograms of a step to every output.

  Args:
    folder: the folder of the run.
    config: the config of the run.
    step: the step from which the run continues. Lines of later steps, from a killed process, are
      removed, because these steps are computed again.
  """

  def __init__(self, folder: Path, config: Config, step: int):
    folder.mkdir(parents=True, exist_ok=True)
    _take_out(folder / FILE, step)
    self._path = folder / FILE
    self._unwritten: list[str] = []  # lines that a full disk did not take
    self._tensorboard: Any = None
    self._wandb: Any = None
    if config.log.tensorboard:
      from infini_jax.runs.tensorboard import TensorBoard

      self._tensorboard = TensorBoard(folder / "tensorboard", step + 1)
      indented = config.to_json().replace("\n", "\n    ")  # an indented block of Markdown
      self._tensorboard.text("config", f"    {indented}", step + 1)
    if config.log.wandb:
      import wandb

      self._wandb = wandb.init(
        project="infini_jax",
        dir=str(folder),
        id=_wandb_id(folder / WANDB, step),
        resume="allow",
        config=json.loads(config.to_json()),
        allow_val_change=True,  # a run may continue with more steps
      )

  def write(self, step: int, values: dict[str, Any], prefix: str = "train") -> None:
    """Writes the values of one step: numbers, lists, and lists of lists by layer.

    TensorBoard and wandb get a list as a histogram, TensorBoard one for each layer. They also get
    each gate as a number, if there are at most `GATES`.
    """
    self._append(json.dumps({"step": step, "kind": prefix, **values}) + "\n")
    gates = _gates(values.get("gates_LH"))
    if self._tensorboard is not None:
      for name, value in values.items():
        if name in COUNTS:
          continue
        if isinstance(value, list) and isinstance(value[0], list):
          for layer, row in enumerate(value):
            self._tensorboard.histogram(f"{prefix}/{name}/{layer + 1}", row, step)
        elif isinstance(value, list):
          self._tensorboard.histogram(f"{prefix}/{name}", value, step)
        elif value is not None:
          self._tensorboard.scalar(f"{prefix}/{name}", value, step)
      for name, gate in gates.items():
        self._tensorboard.scalar(name, gate, step)
    if self._wandb is not None:
      self._wandb.log({f"{prefix}/{k}": v for k, v in values.items()} | gates, step=step)

  def _append(self, line: str) -> None:
    """Writes the line after those before it. If the disk does not take them, they are kept for the
    next call: metrics must not end a training."""
    self._unwritten.append(line)
    size = self._path.stat().st_size if self._path.exists() else 0
    try:
      with self._path.open("a") as file:
        file.write("".join(self._unwritten))
    except OSError as error:
      if len(self._unwritten) == 1:
        LOGGER.warning(
          f"warning: {self._path}: cannot be written ({error.strerror}); its lines are kept until "
          f"there is room"
        )
      with contextlib.suppress(OSError):
        os.truncate(self._path, size)  # no part of a line stays
    else:
      self._unwritten = []

  def close(self) -> None:
    """Flushes and closes every output."""
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
  """The run's id at wandb. A run that continues keeps its id; a run at step 0 gets a new one."""
  given = os.environ.get("WANDB_RUN_ID")
  if given or step == 0 or not file.exists():
    write_text(file, (given or secrets.token_hex(4)) + "\n")
  return file.read_text().strip()


def read_metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
  """The lines of one kind that a run has written so far, without an incomplete last line."""
  return [line for line in _lines(folder / FILE) if line["kind"] == kind]


def last_logged(folder: Path, step: int) -> dict[str, Any]:
  """The last training line of a run up to a step; empty if there is none."""
  lines = [line for line in read_metrics(folder) if line["step"] <= step]
  return lines[-1] if lines else {}


def _lines(file: Path) -> list[dict[str, Any]]:
  lines = []
  for text in file.read_text().splitlines() if file.exists() else []:
    with contextlib.suppress(ValueError):
      lines.append(json.loads(text))
  return lines


def _take_out(file: Path, step: int) -> None:
  """Removes the lines of later steps, and incomplete lines."""
  kept = "".join(json.dumps(line) + "\n" for line in _lines(file) if line["step"] <= step)
  if file.exists() and kept != file.read_text():
    write_text(file, kept)
