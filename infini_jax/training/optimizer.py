"""AdamW, or Adafactor as in the paper, with the gates in a group of their own.

All computation and all statistics are in float32. If parameters are stored in bfloat16, the new
values are rounded at random (`apply`), because the nearest value is usually the old one.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infini_jax.config import Config
from infini_jax.ops.shards import letters_of
from infini_jax.parallel.mesh import in_mesh

# Names of matrices whose products sum over the width, the heads or the feed-forward.
HIDDEN = ("w_", "down_")


def make_schedule(config: Config, peak: float) -> optax.Schedule:
  """Linear warm-up to `peak`, then a cosine to `final_fraction` of it at the last step."""
  o, steps = config.optimizer, config.train.steps

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = (step + 1) / max(1, o.warmup_steps)
    progress = (step - o.warmup_steps) / max(1, steps - o.warmup_steps)
    cosine = (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
    return peak * jnp.minimum(warmup, o.final_fraction + (1 - o.final_fraction) * cosine)

  return schedule


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """The whole update: clipping over all parameters, then one rule per group.

  Gates have their own learning rate, no decay, and no scaling by their size, because such scaling
  would keep them at their start of 0. Vectors (norms, biases) have no decay.
  """
  o = config.optimizer
  rate = make_schedule(config, o.learning_rate)
  gate = optax.adam(make_schedule(config, o.gate_learning_rate), o.b1, o.b2, o.eps)
  if o.name == "adamw":
    groups = {
      "gate": gate,
      "matrix": optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay),
      "vector": optax.adam(rate, o.b1, o.b2, o.eps),
    }
    if (ratio := config.model.width_ratio) != 1:  # rate times decay is the same at every width
      groups["hidden"] = optax.adamw(
        make_schedule(config, o.learning_rate * ratio),
        *(o.b1, o.b2, o.eps),
        weight_decay=o.weight_decay / ratio,
      )
  else:
    matrix, vector = _adafactor(rate, o.b1, o.weight_decay), _adafactor(rate, o.b1, 0.0)
    groups = {"gate": gate, "matrix": matrix, "vector": vector}
    groups |= {"stacked matrix": _layer_by_layer(matrix), "stacked vector": _layer_by_layer(vector)}
  clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
  return _in_float32(
    optax.chain(clip, optax.partition(groups, lambda p: _label(p, o.name, "hidden" in groups)))
  )


def apply(params: Any, updates: Any, key: jax.Array) -> Any:
  """The parameters after an update, in their own types.

  A bfloat16 parameter is rounded up or down at random; the probabilities make the mean exact. The
  random bits depend only on the key and on the parameter's place in the tree. So the result is the
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


def _label(params: Any, name: str, widened: bool = False) -> Any:
  def one(path, leaf):
    if path[-1].key == "beta_H":
      return "gate"
    bias = path[-1].key.startswith("b_")
    kind = "matrix" if len(letters_of(path)) > 1 and not bias else "vector"
    if widened and path[-1].key.startswith(HIDDEN):
      return "hidden"
    return f"stacked {kind}" if name == "adafactor" and path[0].key == "blocks" else kind

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
