"""The size of the state of each memory system: Table 1 of arXiv 2404.07143, for any config."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.table import Table

from infini_jax.config import SYSTEMS, Config, InputError, ModelConfig
from infini_jax.models import build
from infini_jax.models.mixers import MIXERS


class Memory(NamedTuple):
  """The size of the state of one memory system, counted and by the formula of Table 1.

  Attributes:
    mixer: the name of the system.
    elements: numbers in the state of one lane, all layers; of `full`, per token read.
    bytes: bytes of these numbers.
    formula: the closed form, in the glossary's letters.
    closed: the value of the formula.
    refused: why this config cannot have this system; then there are no figures.
    layers: of `model.pattern`, the layers of this system; 0: all layers have it.
  """

  mixer: str
  elements: int = 0
  bytes: int = 0
  formula: str = ""
  closed: int = 0
  refused: str = ""
  layers: int = 0


def memories(config_of: Callable[[str], Config]) -> list[Memory]:
  """Counts the state of every memory system in its real state tree.

  Args:
    config_of: returns the config with the system of the given name, or raises InputError.
  """
  return [memory(config_of, mixer) for mixer in SYSTEMS]


def of_pattern(model: ModelConfig) -> list[Memory]:
  """Counts the state of each system of `model.pattern` in its own layers; none without one."""
  if not model.pattern:
    return []
  return [_counted(own)._replace(layers=own.layers) for own in model.by_system.values()]


def show(found: list[Memory], console: Console) -> None:
  """Prints a table of sizes. `compression` is the ratio to the largest memory's numbers, as in
  Table 2; `bytes` is the ratio to Infini-attention's bytes.
  """
  base = next(m.bytes for m in found if SYSTEMS[m.mixer].matrix)
  largest = max(m.elements for m in found if not SYSTEMS[m.mixer].grows)
  table = Table("memory", title="the state of one lane", title_justify="left")
  for column in ("numbers", "compression", "MiB", "bytes", "formula"):
    table.add_column(column, justify="left" if column == "formula" else "right")
  for m in found:
    name = f"{m.mixer}, {m.layers} layers of the pattern" if m.layers else m.mixer
    if m.refused:
      table.add_row(name, "", "", "", "", m.refused)
      continue
    each = " a token" if SYSTEMS[m.mixer].grows else ""
    bounded = m.elements and not each
    compression = f"{largest / m.elements:,.1f}x" if bounded and largest else ""
    ratio = f"{m.bytes / base:,.1f}x" if bounded else ""
    mib = f"{m.bytes / 2**20:,.2f}{each}"
    table.add_row(name, f"{m.elements:,}{each}", compression, mib, ratio, m.formula)
  console.print(table)


def memory(config_of: Callable[[str], Config], mixer: str) -> Memory:
  """Counts the state of one memory system; see `memories`."""
  try:
    model = config_of(mixer).model
  except InputError as error:
    return Memory(mixer, refused=str(error).partition(":")[0])
  return _counted(model)


def _counted(model: ModelConfig) -> Memory:
  leaves = jax.tree.leaves(_state(model))
  # Counters and document numbers are not counted; the memory itself is floating point.
  held = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 2]
  elements = sum(math.prod(x.shape) for x in held)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in held)
  formula, closed = MIXERS[model.mixer].table_1(model)
  return Memory(model.mixer, elements, size, formula, closed)


def _state(model: ModelConfig) -> Any:
  """The abstract state of one lane; of one token, if the state grows."""
  made = lambda: build(model, nnx.Rngs(0))
  if not model.memory.layered:  # every layer keeps its outputs for the summaries
    return jax.eval_shape(lambda: made().open(made().state(1), 1).layers.state)
  if not model.memory.grows:
    return jax.eval_shape(lambda: made().state(1))
  mixer = MIXERS[model.mixer]
  empty = mixer(model, nnx.Rngs(0)).state(1)
  return mixer.reserve(jax.tree.map(lambda x: jnp.stack([x] * model.layers), empty), 1)
