"""Ablations: the same evaluation with less of the memory. The difference is the memory's effect.

empty    the memory is held empty: every segment is read as if a document began there; layers of
         full attention in a pattern (`model.pattern`) still see the document
reads    the memory is written, and its read-outs are 0
layers   as `reads`, for each layer separately
swap     every segment is read with the memory of another document; each lane writes its own memory

`empty` shows whether the memory helps at all, `swap` whether it depends on this document.
"""

from typing import NamedTuple

import numpy as np

from infini_jax.config import Config


class Variant(NamedTuple):
  """One way to run an evaluation."""

  name: str
  empty: bool = False
  cut: tuple[int, ...] = ()  # the layers whose reads are cut, from 0
  swap: bool = False

  def cut_L(self, layers: int) -> np.ndarray:
    """True for the layers whose reads are cut."""
    return np.isin(np.arange(layers), self.cut)


INTACT, EMPTY = Variant("memory"), Variant("empty", empty=True)


def knock_outs(config: Config) -> list[Variant]:
  """The ablations of `config.evaluation.knock_out`; none for a model without memory."""
  if not config.model.memory.remembers:
    return []
  m = config.model
  layers = [i for i, ablated in enumerate(m.memory.ablated(m.layers)) if ablated]
  by_name = {
    "empty": [EMPTY],
    "reads": [Variant("reads cut", cut=tuple(layers))],
    "swap": [Variant("memory of another", swap=True)],
    "layers": [Variant(f"layer {layer + 1} cut", cut=(layer,)) for layer in layers],
  }
  return [variant for name in config.evaluation.knock_out for variant in by_name[name]]


def label_of(name: str) -> str:
  """The name of a variant in tables and pictures."""
  known = {
    INTACT.name: "with the memory",
    EMPTY.name: "memory held empty",
    "memory of another": "memory of another document",
  }
  return known.get(name, f"memory with {name}")
