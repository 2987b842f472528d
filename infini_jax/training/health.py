"""Metrics of the memory at every step, and the check that all numbers are finite."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.models.mixers.base import GATE
from infini_jax.ops import gate_values
from infini_jax.parallel import shard

DEAD = 0.01  # a gate below this value counts as shut

# In the order from cause to effect. The gate is the one after the update.
PLACES = {
  "z_max_LK": "the normalizer z",
  "memory_max_LK": "the memory M",
  "readout_max_LK": "the read-out",
  "gate_grad_LH": "the gradient of the gate",
  "gates_LH": "the gate",
}
WATCHED = ("loss", "grad_norm", *PLACES)
LOGGED = ("grad_norm", "answer_accuracy", "text_loss", "distillation", "memory_L", "z_L", *PLACES)


def memory_metrics(config: ModelConfig, params: Any, grads: Any, memory: Any) -> dict[str, Any]:
  """The metrics of a matrix memory and its gates after a step; empty for other systems.

  Returns:
    gates_LH, gate_grad_LH: the share of the memory in each head's output; the gradient of beta.
    memory_L, z_L: the root mean square of M; the mean of z.
    memory_max_LK, z_max_LK: the largest magnitudes of M and z.
    readout_max_LK: the largest possible read-out of any query. A read-out is a mean of the rows
      M_e / z_e with the weights sigma(q)_e z_e > 0, so max |M_eu| / z_e is its least upper bound.
    empty_LK: True where the memory of every lane is empty.
    remembers_L: only with `model.pattern`: False for layers without such a memory. They have 0 in
      the other metrics.
  """
  if not config.memory.matrix:
    return {}
  mixers = lambda tree: tree["blocks"]["attention"]["mixer"]
  if not config.pattern:
    return _metrics(config, mixers(params), mixers(grads), memory)
  metrics = {"remembers_L": jnp.zeros(config.layers, bool)}
  for name, own in config.by_system.items():
    if own.memory.matrix:
      found = _metrics(own, mixers(params)[name], mixers(grads)[name], memory[name])
      layers = np.array(config.layers_of(name))
      for metric, x in (found | {"remembers_L": jnp.ones(own.layers, bool)}).items():
        every = metrics.get(metric, jnp.zeros((config.layers, *x.shape[1:]), x.dtype))
        metrics[metric] = every.at[layers].set(shard(x, "_" * x.ndim))
  return metrics


def _metrics(config: ModelConfig, params: Any, grads: Any, memory: Any) -> dict[str, Any]:
  """`memory_metrics` of the layers of one system, from their mixers."""
  beta = lambda tree: tree[GATE]
  M_LBKEU, z_LBKE = memory
  written_LBKE = z_LBKE > 0
  rows_LBKE = jnp.abs(M_LBKEU).max(-1) / jnp.where(written_LBKE, z_LBKE, 1.0)
  return {
    "gates_LH": gate_values(beta(params), config.memory.gate),
    "gate_grad_LH": beta(grads),
    "memory_L": jnp.sqrt(jnp.mean(M_LBKEU**2, axis=(1, 2, 3, 4))),
    "z_L": jnp.mean(z_LBKE, axis=(1, 2, 3)),
    "memory_max_LK": jnp.abs(M_LBKEU).max((1, 3, 4)),
    "z_max_LK": z_LBKE.max((1, 3)),
    "readout_max_LK": rows_LBKE.max((1, 3)),
    "empty_LK": ~written_LBKE.any((1, 3)),
  }


def check_finite(step: int, metrics: dict[str, Any]) -> None:
  """Raises FloatingPointError if numbers of a step are not finite; it names the layer and head."""
  if what := diagnosis(metrics):
    raise FloatingPointError(
      f"step {step}: {what}: lower config.optimizer.learning_rate or gate_learning_rate; the "
      f"checkpoints are of earlier steps"
    )


def diagnosis(metrics: dict[str, Any]) -> str:
  """The numbers in the metrics of a step that are not finite, with layer and head; empty: none."""
  values = {k: np.asarray(metrics[k]) for k in WATCHED if k in metrics}
  if all(np.isfinite(value).all() for value in values.values()):
    return ""
  where = ""
  for name, what in PLACES.items():
    bad = np.argwhere(~np.isfinite(values.get(name, np.zeros(0))))
    if len(bad):
      layer, head = bad[0] + 1
      where = f"; {what} of layer {layer}, head {head} is {values[name][layer - 1, head - 1]}"
      where += f" ({len(bad)} of {values[name].size} are)" if len(bad) > 1 else ""
      break
  return f"loss {float(values['loss']):g}, gradient norm {float(values['grad_norm']):g}{where}"


def log_values(metrics: dict[str, Any]) -> dict[str, Any]:
  """The values of these metrics to log: numbers, lists by layer, lists of lists by layer and head.

  `dead_heads` is the share of query heads whose gate is shut or whose memory is empty.
  """
  short = np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[float])
  values = {k: short(np.asarray(v)).tolist() for k, v in metrics.items() if k in LOGGED}
  if "gates_LH" in metrics:
    gates_LH, empty_LK = np.asarray(metrics["gates_LH"]), np.asarray(metrics["empty_LK"])
    empty_LH = np.repeat(empty_LK, gates_LH.shape[1] // empty_LK.shape[1], axis=1)
    dead_LH = (gates_LH < DEAD) | empty_LH
    values["dead_heads"] = float(dead_LH[metrics.get("remembers_L", slice(None))].mean())
    bins = [np.histogram(gates_H, bins=10, range=(0, 1))[0].tolist() for gates_H in gates_LH]
    values["gate_histogram"] = bins
  return values
