"""What each memory system carries for one lane: Table 1 of arXiv 2404.07143, for any config."""

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
  """One system: what its state holds, and Table 1's formula for it.

  Attributes:
    mixer: the system.
    elements: numbers of the state of one lane, all layers; of `full`, for each token read.
    bytes: of those.
    formula: the closed form, in the glossary's letters.
    closed: its value.
    refused: why this config cannot have that system; then there are no figures.
  """

  mixer: str
  elements: int = 0
  bytes: int = 0
  formula: str = ""
  closed: int = 0
  refused: str = ""


def memories(config_of: Callable[[str], Config]) -> list[Memory]:
  """All systems, counted in their real state trees.

  Args:
    config_of: the config with the system of that name; it raises InputError where there is none.
  """
  return [memory(config_of, mixer) for mixer in SYSTEMS]


def show(found: list[Memory], console: Console) -> None:
  """A table: sizes; numbers to the largest memory's, as in Table 2; bytes to Infini-attention's."""
  base = next(m.bytes for m in found if SYSTEMS[m.mixer].matrix)
  largest = max(m.elements for m in found if not SYSTEMS[m.mixer].grows)
  table = Table("memory", title="what one lane carries", title_justify="left")
  for column in ("numbers", "compression", "MiB", "bytes", "formula"):
    table.add_column(column, justify="left" if column == "formula" else "right")
  for m in found:
    if m.refused:
      table.add_row(m.mixer, "", "", "", "", m.refused)
      continue
    each = " a token" if SYSTEMS[m.mixer].grows else ""
    bounded = m.elements and not each
    compression = f"{largest / m.elements:,.1f}x" if bounded and largest else ""
    ratio = f"{m.bytes / base:,.1f}x" if bounded else ""
    mib = f"{m.bytes / 2**20:,.2f}{each}"
    table.add_row(m.mixer, f"{m.elements:,}{each}", compression, mib, ratio, m.formula)
  console.print(table)


def memory(config_of: Callable[[str], Config], mixer: str) -> Memory:
  """One system: see `memories`."""
  try:
    model = config_of(mixer).model
  except InputError as error:
    return Memory(mixer, refused=str(error).partition(":")[0])
  leaves = jax.tree.leaves(_state(model))
  # Counters and the numbers of documents are bookkeeping; what is remembered is floating point.
  held = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 2]
  elements = sum(math.prod(x.shape) for x in held)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in held)
  formula, closed = MIXERS[mixer].table_1(model)
  return Memory(mixer, elements, size, formula, closed)


def _state(model: ModelConfig) -> Any:
  """The state of one lane; of one token, where it grows."""
  made = lambda: build(model, nnx.Rngs(0))
  if not model.memory.layered:  # every layer keeps what it made of the summaries
    return jax.eval_shape(lambda: made().open(made().state(1), 1).layers.last)
  if not model.memory.grows:
    return jax.eval_shape(lambda: made().state(1))
  mixer = MIXERS[model.mixer]
  empty = mixer(model, nnx.Rngs(0)).state(1)
  return mixer.reserve(jax.tree.map(lambda x: jnp.stack([x] * model.layers), empty), 1)
