"""Checks of fields of several sections. Those of one section are in the file of the section."""

import importlib.util

from infini_jax.config.adaptation import check_adaptation
from infini_jax.config.bounds import InputError, check_bounds
from infini_jax.config.mixing import check_mixing
from infini_jax.config.optimization import check_optimizer
from infini_jax.config.schema import Config, ModelConfig
from infini_jax.config.tasks import TASKS

BY_WIDTH = ("adamw",)  # optimizers whose learning rate follows muP


def check(config: Config) -> None:
  """Raises InputError, with the remedy, for the first wrong combination of fields of a config."""
  for name, section in config.sections().items():
    check_bounds(name, section)
  m, d, t = config.model, config.data, config.train
  check_optimizer(config.optimizer, t.steps)
  m.check()
  for section in (config.task, config.warm, config.evaluation):
    section.check()
  if m.width_base and config.optimizer.name not in BY_WIDTH:
    raise InputError(
      f"config.model.width_base={m.width_base} with config.optimizer.name="
      f"{config.optimizer.name!r}: how its rate changes with the width is known for "
      f"{', '.join(BY_WIDTH)} alone; set width_base=0"
    )
  if d.lanes % t.accumulate:
    raise InputError(
      f"config.data.lanes={d.lanes} is not a multiple of config.train.accumulate={t.accumulate}: "
      f"the lanes are divided among the microbatches"
    )
  if d.carry_state and m.memory.grows:
    raise InputError(
      f"config.data.carry_state=True with config.{m.setting}: its state grows without "
      f"end; set config.data.carry_state=False"
    )
  if not m.memory.layered and "layers" in config.evaluation.knock_out:
    raise InputError(
      f"config.evaluation.knock_out='layers' with config.{m.setting}: one memory "
      f"serves all its layers; leave 'empty' or 'reads'"
    )
  writes = TASKS[config.evaluation.task or config.task.name].writes
  if m.pattern and m.memory.grows and writes and "empty" in config.evaluation.knock_out:
    raise InputError(
      f"config.evaluation.knock_out='empty' with config.{m.setting}: a summary without the memory "
      f"is written from the last segment, so full attention would lose the text too; leave it out"
    )
  if "swap" in config.evaluation.knock_out:
    _check_swap(config)
  _check_task(config)
  check_adaptation(config)
  check_mixing(config)
  if config.mesh.seq > 1:
    _check_sequence_parallel(config)
  if config.log.wandb:
    _require("wandb", "config.log.wandb=True", "pip install -e '.[wandb]'")


def _check_sequence_parallel(config: Config) -> None:
  m = config.model
  if wrong := m.memory.not_divided(m.run.implementation):
    setting, why = wrong
    raise InputError(f"config.mesh.seq={config.mesh.seq} with config.{setting or m.setting}: {why}")


def _check_task(config: Config) -> None:
  d, task, warm, e = config.data, config.task, config.warm, config.evaluation
  if task.kind.generated:
    if d.carry_state:
      raise InputError(
        f"config.data.carry_state=True with config.task.name={task.name!r}: its examples end "
        f"within a step; set config.data.carry_state=False (and see config.warm)"
      )
    if task.min_segments > d.segments:
      raise InputError(
        f"config.task.min_segments={task.min_segments} is more than config.data.segments="
        f"{d.segments}: an example is whole in one chunk"
      )
  if task.text_lanes:
    for wrong, why in (
      (
        not task.kind.generated,
        f"with config.task.name={task.name!r}: set it 0",
      ),
      (task.text_lanes >= d.lanes, f"of config.data.lanes={d.lanes}: leave lanes for the task"),
      (not d.path, "without config.data.path: set it to a corpus or a prepared store"),
      (d.tokenizer == "task", "with config.data.tokenizer='task': its words write no text"),
    ):
      if wrong:
        raise InputError(f"config.task.text_lanes={task.text_lanes} {why}")
  if d.tokenizer == "task" and not task.kind.own_words:
    able = " or ".join(repr(name) for name, kind in TASKS.items() if kind.own_words)
    raise InputError(f"config.data.tokenizer='task' needs config.task.name={able}")
  if warm.share and task.kind.writes:
    raise InputError(f"config.warm.share with config.task.name={task.name!r}: set it 0")
  if warm.share and config.model.memory.grows:
    raise InputError(
      f"config.warm.share with config.{config.model.setting}: its state grows; set it 0"
    )
  _check_growth(config)
  N = config.model.segment_length
  if e.input_tokens % N:
    raise InputError(
      f"config.evaluation.input_tokens={e.input_tokens} is no multiple of "
      f"config.model.segment_length={N}: set it to {max(1, round(e.input_tokens / N)) * N}"
    )


def _check_swap(config: Config) -> None:
  e = config.evaluation
  written = TASKS[asked := e.task or config.task.name].writes
  for wrong, setting, why in (
    (
      e.lanes == 1,
      "evaluation.lanes=1",
      "no other document is read at the same time; set it 2 or more",
    ),
    (config.mesh.seq > 1, f"mesh.seq={config.mesh.seq}", "set config.mesh.seq=1"),
    (
      bool(written),
      f"evaluation.task={asked!r}",
      f"{written} is written with its own memory; leave 'swap' out",
    ),
  ):
    if wrong:
      raise InputError(f"config.evaluation.knock_out='swap' with config.{setting}: {why}")


def _check_growth(config: Config) -> None:
  m, warm = config.model, config.warm
  setting = m.memory.not_additive()
  for name, off in (("growth", 1), ("filler", 0)):
    if getattr(warm, name) != off and setting is not None:
      raise InputError(
        f"config.warm.{name}={getattr(warm, name)} with "
        f"config.{setting or m.setting}: its state is no sum over the text, so no "
        f"piece can count twice; set config.warm.{name}={off}"
      )
  if not warm.filler:
    return
  for wrong, given, remedy in (
    (m.memory.affine, _affine(m), "a token cannot be erased twice; set"),
    (
      not config.task.kind.asks,
      "task.name='text'",
      "only the examples of a task have filler; set",
    ),
    (not warm.share, "warm.share=0", "no example starts warm; set config.warm.share, or"),
  ):
    if wrong:
      raise InputError(
        f"config.warm.filler={warm.filler} with config.{given}: {remedy} config.warm.filler=0"
      )


def _affine(m: ModelConfig) -> str:
  """The setting for which a memory system of the model is affine; empty: none is."""
  affine = (name for name, own in m.by_system.items() if own.memory.affine)
  return next((f"{name}.rule={m.by_system[name].memory.rule!r}" for name in affine), "")


def _require(module: str, setting: str, remedy: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise InputError(f"{setting} needs the package {module!r}: {remedy}")
