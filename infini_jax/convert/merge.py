"""`infini-jax convert merge`: low-rank adapters are added to the weights that they adapt."""

import dataclasses
from pathlib import Path

import jax
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.convert.adapter import described, write_model
from infini_jax.convert.building import check_free
from infini_jax.inference.saved import open_run
from infini_jax.models import merged
from infini_jax.runs.workdir import Workdir


def merge(path: str, out: Path, step: int | None, console: Console, ema: bool = False) -> None:
  """Makes a run whose weights hold what the adapters of another run add to them.

  The adapters of a memory (`memory.adapter_rank`) stay: they act on the memory alone.

  Args:
    path: the folder of the run.
    out: the folder to make.
    step: the step of the checkpoint; None: the newest.
    console: where the next command is printed.
    ema: takes the moving average of the parameters, not their last values.

  Raises:
    InputError: no such run, checkpoint or average, or the run has no adapters.
  """
  check_free(out)
  config = Workdir(path).config()
  if not config.model.adapters.rank:
    raise InputError(
      f"{path}: config.adapters.rank=0: has no adapters to merge; use the run as it is"
    )
  opened = open_run(path, step, ema)
  model, params = merged(config.model, opened.engine.params)
  whole = described(dataclasses.replace(config, model=model))
  write_model(whole, jax.device_get(params), opened.tokenizer, path, out)
  console.print(
    f"merged: {out.absolute()}\nNext: infini-jax convert export {out} FOLDER --memory",
    highlight=False,
    soft_wrap=True,
  )
