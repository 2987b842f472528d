"""What each memory system carries for one lane: Table 1 of arXiv 2404.07143, for any config."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.table import Table

from infini_jax.config import MIXERS, Config, InputError, ModelConfig, check
from infini_jax.models import build
from infini_jax.models.mixers.full import Full


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


def memories(config: Config) -> list[Memory]:
  """All systems at the sizes of this config, counted in their real state trees."""
  return [_one(config, mixer) for mixer in MIXERS]


def show(found: list[Memory], console: Console) -> None:
  """A table: sizes; numbers to the largest memory's, as in Table 2; bytes to Infini-attention's."""
  base = next(m.bytes for m in found if m.mixer == "infini")
  largest = next(m.elements for m in found if m.mixer == "memorizing")
  table = Table("memory", title="what one lane carries", title_justify="left")
  for column in ("numbers", "compression", "MiB", "bytes", "formula"):
    table.add_column(column, justify="left" if column == "formula" else "right")
  for m in found:
    if m.refused:
      table.add_row(m.mixer, "", "", "", "", m.refused)
      continue
    each = " a token" if m.mixer == "full" else ""
    bounded = m.elements and not each
    compression = f"{largest / m.elements:,.1f}x" if bounded and largest else ""
    ratio = f"{m.bytes / base:,.1f}x" if bounded else ""
    mib = f"{m.bytes / 2**20:,.2f}{each}"
    table.add_row(m.mixer, f"{m.elements:,}{each}", compression, mib, ratio, m.formula)
  console.print(table)


def _one(config: Config, mixer: str) -> Memory:
  carry = dataclasses.replace(config.data, carry_state=False)
  model = dataclasses.replace(config.model, mixer=mixer)
  try:
    check(dataclasses.replace(config, model=model, data=carry))
  except InputError as error:
    return Memory(mixer, refused=str(error).partition(":")[0])
  leaves = jax.tree.leaves(_state(model))
  # Counters and the numbers of documents are bookkeeping; what is remembered is floating point.
  held = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 2]
  elements = sum(math.prod(x.shape) for x in held)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in held)
  formula, closed = _closed(model)
  return Memory(mixer, elements, size, formula, closed)


def _state(model: ModelConfig) -> Any:
  """The state of one lane; of one token, where it grows."""
  made = lambda: build(model, nnx.Rngs(0))
  if model.mixer in ("rmt", "autocompressor"):  # every layer keeps what it made of the summaries
    return jax.eval_shape(lambda: made().open(made().state(1), 1).layers.last)
  if model.mixer != "full":
    return jax.eval_shape(lambda: made().state(1))
  empty = Full(model, nnx.Rngs(0)).state(1)
  return Full.reserve(jax.tree.map(lambda x: jnp.stack([x] * model.layers), empty), 1)


def _closed(c: ModelConfig) -> tuple[str, int]:
  """Table 1's formula; H there is K here, the heads that have keys and values."""
  pair, L, N = 2 * c.kv_heads * c.head_dim, c.layers, c.segment_length
  stores = len(c.knn_layers)
  return {
    "infini": ("L K (E U + E)", L * c.kv_heads * c.head_dim * (c.head_dim + 1)),
    "local": ("0", 0),
    "full": ("2 L K E", L * pair),
    "transformer_xl": ("2 L K E N", L * pair * N),
    "compressive": ("L D (N + C)", L * c.width * (N + c.compressed_memory)),
    "rmt": ("2 L K E P", L * pair * c.summary_tokens),
    "autocompressor": ("2 L K E P m", L * pair * c.summary_tokens * c.summary_steps),
    "memorizing": (
      f"2 K E (L N + {stores if stores > 1 else ''} M)".replace("  ", " "),
      pair * (L * N + stores * c.knn_memory),
    ),
  }[c.mixer]  # fmt: skip
