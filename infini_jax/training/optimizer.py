"""AdamW, Adafactor as in the paper, Muon or Lion, with the gates in a group of their own.

All computation and all statistics are in float32. If parameters are stored in bfloat16, the new
values are rounded at random (`apply`), because the nearest value is usually the old one.
"""

import math
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infini_jax.config import Config, InputError
from infini_jax.models import param_shapes
from infini_jax.models.mixers.base import GATE
from infini_jax.ops.shards import letters_of
from infini_jax.parallel.mesh import in_mesh
from infini_jax.training.muon import is_matrix, muon
from infini_jax.training.schedule import make_schedule
from infini_jax.training.trainable import split

# Names of matrices whose products sum over the width, the heads or the feed-forward.
HIDDEN = ("w_", "down_")


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """The whole update: clipping over all parameters, then one rule per group.

  Gates have their own learning rate and Adam, with every optimizer. They are not scaled by their
  size, because such scaling would keep them at their start of 0.
  """
  o, of = config.optimizer, config.weight_decay
  rate, gate_rate = (make_schedule(config, r) for r in (o.learning_rate, o.gate_learning_rate))
  adamw = lambda rate, decay: optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=decay)
  adam = lambda rate, decay: adamw(rate, decay) if decay else optax.adam(rate, o.b1, o.b2, o.eps)
  lion = lambda rate, decay: optax.lion(rate, o.b1, o.b2, weight_decay=decay)
  factored = lambda rate, decay: _adafactor(rate, o.b1, decay)
  matrices, embeddings, vectors, gates = (
    o.weight_decay * times for times in (of.matrices, of.embeddings, of.vectors, of.gates)
  )
  matrix, vector = {
    "adamw": (adamw, adam),
    "muon": (adamw, adam),
    "lion": (lion, lion),
    "adafactor": (factored, factored),
  }[o.name]
  groups = {
    "gate": adam(gate_rate, gates),
    "matrix": matrix(rate, matrices),
    "vector": vector(rate, vectors),
  }
  if embeddings != matrices:
    groups["embedding"] = matrix(rate, embeddings)
  if (ratio := config.model.width_ratio) != 1:  # rate times decay is the same at every width
    groups["hidden"] = matrix(make_schedule(config, o.learning_rate * ratio), matrices / ratio)
  if o.name == "muon":
    groups["orthogonal"] = muon(rate, o.momentum, matrices)
  if o.name == "adafactor":
    # The mixers of a pattern's systems have other numbers of layers than the rest.
    for system in ("", *dict.fromkeys(config.model.pattern)):
      for name in ("matrix", "vector"):
        groups[f"stacked {name} {system}".strip()] = _layer_by_layer(groups[name])
  clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
  return _in_float32(
    optax.chain(clip, optax.partition(groups, partial(_labels, groups, config.model.pattern)))
  )


def check_matrices(config: Config) -> None:
  """Raises InputError if the optimizer is Muon, and no trained parameter is a matrix for it."""
  if config.optimizer.name != "muon":
    return
  trained = jax.tree_util.tree_leaves_with_path(split(config, param_shapes(config.model))[0])
  if not any(is_matrix(path) for path, _ in trained):
    raise InputError(
      f"config.optimizer.name='muon' with config.train.part={config.train.part!r}: no matrix of "
      f"the layers is trained; set config.optimizer.name='adamw'"
    )


def apply(params: Any, updates: Any, key: jax.Array) -> Any:
  """The parameters after an update, in their own types.

  A bfloat16 parameter is rounded up or down at random; the probabilities make the mean exact. The
  random bits depend only on the key and on the parameter's path in the tree. So the result is the
  same on every mesh, and in a run that continues from a checkpoint.

  Args:
    params: the parameters.
    updates: the updates, a tree of the same structure in float32.
    key: a random key for this run and step.
  """

  def one(path, param, update):
    if param.dtype != jnp.bfloat16:
      return optax.apply_updates(param, update)
    place = zlib.crc32("/".join(step.key for step in path).encode())
    return _round_at_random(param.astype(jnp.float32) + update, jax.random.fold_in(key, place))

  return jax.tree_util.tree_map_with_path(one, params, updates)


def averaged(config: Config, ema: Any, params: Any, step: jax.Array) -> Any:
  """The moving average of the parameters after an update, in float32.

  It is the mean of the parameters after each update so far. The weight of an update is
  `config.optimizer.ema` times that of the next one. So the random start has no weight.

  Args:
    config: the config of the run.
    ema: the average before the update.
    params: the parameters after the update.
    step: the number of updates before it.
  """
  decay = config.optimizer.ema
  weights = -jnp.expm1((step + 1).astype(jnp.float32) * math.log(decay)) / (1 - decay)
  return optax.incremental_update(in_float32(params), ema, 1 / weights)


def _round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
  """Converts float32 to bfloat16: it adds random bits to the low bits, and cuts these off."""
  where = jax.typeof(x).sharding.spec if in_mesh() else None
  noise = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=where).astype(jnp.uint32)
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def in_float32(tree: Any) -> Any:
  """Parameters or gradients in float32, the type of the optimizer's computation."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same transformation on float32 copies, so that statistics and updates are float32."""
  return optax.GradientTransformation(
    lambda params: tx.init(in_float32(params)),
    lambda updates, state, params=None: tx.update(in_float32(updates), state, in_float32(params)),
  )


def _labels(groups: Any, pattern: tuple[str, ...], params: Any) -> Any:
  """The group of each parameter."""

  def one(path, leaf):
    if path[-1].key == GATE:
      return "gate"
    names = [key.key for key in path]
    if "hidden" in groups and names[-1].startswith(HIDDEN):
      return "hidden"
    in_layers, stacked = names[0] == "blocks", "stacked matrix" in groups
    of = names[names.index("mixer") + 1] if pattern and "mixer" in names else ""
    if len(letters_of(path)) < 2 or names[-1].startswith("b_"):
      return f"stacked vector {of}".strip() if stacked and in_layers else "vector"
    if not in_layers:
      return "embedding" if "embedding" in groups else "matrix"
    if stacked:
      return f"stacked matrix {of}".strip()
    return "orthogonal" if "orthogonal" in groups and is_matrix(path) else "matrix"

  return jax.tree_util.tree_map_with_path(one, params)


def _adafactor(
  rate: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Adafactor with a decay scaled by the learning rate, as in AdamW (unlike Adafactor of Optax)."""
  factored = optax.adafactor(
    None, momentum=momentum, decay_rate=0.8, weight_decay_rate=weight_decay or None
  )
  return optax.chain(factored, optax.scale_by_schedule(rate))


def _layer_by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies a transformation to each of L stacked layers: Adafactor's statistics are per tensor."""

  def each(f, *trees):  # vmap fails without leaves, when the whole group is frozen
    return (jax.vmap(f) if jax.tree.leaves(trees[0]) else f)(*trees)

  return optax.GradientTransformation(
    lambda params: each(tx.init, params),
    lambda updates, state, params=None: each(tx.update, updates, state, params),
  )
