"""The gates: how many heads use their memory, and a heat map."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import GATE
from infini_jax.ops import gate_values
from infini_jax.parallel import shard

if TYPE_CHECKING:
  from infini_jax.plots import Figure

SHUT, OPEN = 0.1, 0.9  # a head is local below SHUT, a memory head above OPEN, else a mixer


def gates(config: ModelConfig, params: Any) -> np.ndarray | None:
  """The share of the memory in every layer and head, (L, H); None for a model without gates.

  It is 0 in layers without a memory.
  """
  mixers = params["blocks"]["attention"].get("mixer", {})
  mixers = mixers if config.pattern else {config.mixer: mixers}
  gates_LH = np.zeros((config.layers, config.heads), np.float32)
  gated = {name: own for name, own in config.by_system.items() if GATE in mixers.get(name, {})}
  for name, own in gated.items():
    on_every_host = lambda beta_LH, own=own: shard(gate_values(beta_LH, own.memory.gate), "__")
    of_system_LH = np.asarray(jax.jit(on_every_host)(mixers[name][GATE]))
    gates_LH[list(config.layers_of(name))] = of_system_LH
  with_memory_L = np.array(config.memory.with_memory(config.layers))
  return np.where(with_memory_L[:, None], gates_LH, 0.0) if gated else None


def summary(gates_LH: np.ndarray) -> dict[str, Any]:
  """The numbers of local heads, memory heads and mixers, and the range of the gates."""
  return {
    "opened_heads": int((gates_LH > 0.5).sum()),
    "local_heads": int((gates_LH < SHUT).sum()),
    "memory_heads": int((gates_LH > OPEN).sum()),
    "mixer_heads": int(((gates_LH >= SHUT) & (gates_LH <= OPEN)).sum()),
    "least": float(gates_LH.min()),
    "greatest": float(gates_LH.max()),
  }


def draw(gates_LH: np.ndarray, file: Path) -> None:
  """Writes the heat map of gates by layer and head, as in figure 3 of the paper."""
  from infini_jax import plots

  plots.png(heat_map(gates_LH.tolist()), file)


def heat_map(gates_LH: Sequence[Sequence[float]]) -> "Figure":
  """The heat map of gates by layer and head."""
  from infini_jax import plots

  numbers = lambda count: [str(i + 1) for i in range(count)]
  return plots.heat_map(
    {"the memory's share in a head's output": gates_LH},
    numbers(len(gates_LH[0])),
    numbers(len(gates_LH)),
    x="head",
    y="layer",
    scale="gate",
  )
