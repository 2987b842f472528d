"""A training step compiled for devices that are not there: `plan.tpus`, `plan.gpus`."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.lanes.documents import empty_batch
from infini_jax.parallel import abstract_batch, make_mesh
from infini_jax.plan.gpus import cudnn_of
from infini_jax.plan.hlo import Communication, communication
from infini_jax.plan.tpus import REMEDY, versions
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, abstract_teacher, make_train_step


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiled step, on one chip.

  Attributes:
    fits: whether XLA could allocate all of it.
    peak: the largest number of bytes in use at any time; if it did not fit, what XLA reports.
    arguments: bytes of the state and the batch; 0 if it did not fit.
    temporary: bytes that the step allocates, gaps included, so more than it uses at any time; 0 if
      it did not fit.
    code: bytes of the program; 0 if it did not fit.
    communication: what the chip sends.
    seconds: the time of compilation.
  """

  fits: bool
  peak: float
  arguments: float
  temporary: float
  code: float
  communication: Communication
  seconds: float


def compile_program(config: Config, devices: list[Any]) -> jax.stages.Compiled:
  """The whole training step, compiled. It takes minutes for billions of parameters.

  Raises:
    jax.errors.JaxRuntimeError: the step is too large for a TPU, or another error of XLA.
  """
  mesh = make_mesh(config.mesh, devices)
  with jax.set_mesh(mesh):
    tx = make_optimizer(config)
    state = abstract_state(config, tx, mesh)
    batch = abstract_batch(example_batch(config), mesh)
    arguments = (state, batch, *abstract_teacher(config, mesh))
    with cudnn_of(devices):
      lowered = jax.jit(make_train_step(config, tx), donate_argnums=0).lower(*arguments)
    return lowered.compile()


def compile_step(config: Config, devices: list[Any]) -> Compiled:
  """Compiles the whole training step, and reads what it needs and sends.

  Raises:
    InputError: jax cannot read the compiled program.
  """
  began = time.perf_counter()
  try:
    step = compile_program(config, devices)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return no_room(str(error), time.perf_counter() - began)
  try:
    m: Any = step.memory_analysis()
    sent = communication(step.as_text() or "", len(devices))
  except jax.errors.JaxRuntimeError as error:
    said = " ".join(str(error).split())[:160]
    raise InputError(f"the compiled program cannot be read ({said}): {remedy(devices)}") from None
  return Compiled(
    fits=True,
    peak=m.peak_memory_in_bytes,
    arguments=m.argument_size_in_bytes,
    temporary=m.temp_size_in_bytes,
    code=m.generated_code_size_in_bytes,
    communication=sent,
    seconds=time.perf_counter() - began,
  )


def remedy(devices: list[Any]) -> str:
  """What to do if jax cannot read a program that was compiled for these devices."""
  if devices[0].platform in ("gpu", "cuda"):
    return "jax and its plugin may not fit together; pip install -e '.[gpu-plan]'"
  return f"{versions()}; {REMEDY}"


def no_room(error: str, seconds: float) -> Compiled:
  """The result for a program that is too large: its peak is the first size in XLA's message."""
  size = re.search(r"\b([\d.]+)([GMK])\b", error)
  peak = float(size[1]) * {"G": 2**30, "M": 2**20, "K": 2**10}[size[2]] if size else 0.0
  return Compiled(False, peak, 0, 0, 0, Communication((), 0), seconds)


def example_batch(config: Config) -> dict[str, np.ndarray]:
  """Arrays with the shapes and types of a batch of this config. No corpus or task is opened."""
  d, N = config.data, config.model.segment_length
  batch = empty_batch(d.lanes, d.segments, N)
  if config.task.kind.asks:
    batch["weights_BT"] = np.zeros(batch["tokens_BT"].shape, np.float32)
    batch["asked_BT"] = np.zeros(batch["tokens_BT"].shape, bool)
  if config.task.text_lanes:
    batch["text_B"] = np.zeros(d.lanes, bool)
  if config.warm.share:
    read = empty_batch(d.lanes, config.warm.segments, N)
    batch |= {f"warm_{n}": read[n] for n in ("tokens_BT", "mask_BT", "reset_BS")}
    batch["warm_B"] = np.zeros(d.lanes, bool)
    if config.warm.growth > 1:
      batch["warm_times_B"] = np.ones(d.lanes, np.float32)
    if config.warm.filler:
      batch["times_BT"] = np.ones(batch["tokens_BT"].shape, np.float32)
  return batch
