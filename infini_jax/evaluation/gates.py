"""The gates: how many heads use their memory, and a heat map."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.ops import gate_values
from infini_jax.parallel import shard

SHUT, OPEN = 0.1, 0.9  # a head is local below SHUT, a memory head above OPEN, else a mixer


def gates(config: ModelConfig, params: Any) -> np.ndarray | None:
  """The share of the memory in every layer and head, (L, H); None for a model without gates.

  It is 0 in layers without a memory.
  """
  mixers = params["blocks"]["attention"].get("mixer", {})
  mixers = mixers if config.pattern else {config.mixer: mixers}
  gates_LH = np.zeros((config.layers, config.heads), np.float32)
  gated = {name: own for name, own in config.by_system.items() if "beta_H" in mixers.get(name, {})}
  for name, own in gated.items():
    on_every_host = lambda beta_LH, own=own: shard(gate_values(beta_LH, own.memory.gate), "__")
    of_system_LH = np.asarray(jax.jit(on_every_host)(mixers[name]["beta_H"]))
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
  from matplotlib.figure import Figure

  L, H = gates_LH.shape
  figure = Figure(figsize=(max(4.5, 0.55 * H + 2), max(3.0, 0.4 * L + 1.6)), layout="constrained")
  axes = figure.subplots()
  image = axes.imshow(gates_LH, vmin=0, vmax=1, cmap="RdBu_r", aspect="auto")
  axes.set(xlabel="head", ylabel="layer", title="share of the memory in each head's output")
  axes.set_xticks(range(H), labels=[str(h + 1) for h in range(H)])
  axes.set_yticks(range(L), labels=[str(layer + 1) for layer in range(L)])
  if L * H <= 256:
    for (layer, head), gate in np.ndenumerate(gates_LH):
      colour = "white" if abs(gate - 0.5) > 0.3 else "black"
      axes.text(head, layer, f"{gate:.2f}", ha="center", va="center", color=colour, fontsize=8)
  figure.colorbar(image, ax=axes, label="gate: 0 local, 1 memory")
  file.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(file, dpi=120)
