"""Layers with several memory systems, `model.pattern`: one scan over its periods.

Layers differ in their mixers alone. So all other parameters are stacked as in any model, with L in
front, and a pretrained model has the same. The parameters and the state of a mixer are stacked over
the layers of its system, under the name of the system.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers import MIXERS, Mixer
from infini_jax.models.transformer import Block, Transformer, one_layer, scan_last_apart


class Mixers(nnx.Module):
  """The mixers of each system, stacked over its layers."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    for name, own in config.by_system.items():
      make = partial(MIXERS[own.mixer], own)
      setattr(self, name, nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(own.layers)))


class PatternTransformer(Transformer):
  """A state is a dict: of each system, the state of its layers, stacked."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.blocks.attention.mixer = Mixers(config, rngs)  # type: ignore[assignment]

  def state(self, lanes: int) -> dict[str, Any]:
    """The state before anything was read."""
    made = {}
    for name, own in self.config.by_system.items():
      copies = lambda x, own=own: jnp.stack([x] * own.layers)
      made[name] = jax.tree.map(copies, _mixer(own).state(lanes))
    return made

  def open(self, state: dict[str, Any], lanes: int) -> dict[str, Any]:
    """From the state after whole segments to that of an open one, for `extend`."""
    dtype = jnp.dtype(self.config.run.compute_dtype)
    made = {}
    for name, own in self.config.by_system.items():
      one = lambda state, own=own: _mixer(own).open(state, lanes, dtype)
      made[name] = jax.vmap(one, axis_size=own.layers)(state[name])
    return made

  def close(self, stream: dict[str, Any]) -> dict[str, Any]:
    """The other way, where no lane has a token in its open segment."""
    return {name: _mixer(own).close(stream[name]) for name, own in self.config.by_system.items()}

  def apart(self, stream: dict[str, Any]) -> list[Any]:
    """A stream as one of each layer."""
    one = lambda name, i: jax.tree.map(lambda x: x[i], stream[name])
    return [one(name, i) for name, i in self._numbers()]

  def together(self, streams: list[Any]) -> dict[str, Any]:
    """The other way."""
    parts: dict[str, list[Any]] = {}
    for (name, _), own in zip(self._numbers(), streams, strict=True):
      parts.setdefault(name, []).append(own)
    return {name: _stacked(own) for name, own in parts.items()}

  def _numbers(self):
    """Of every layer, its system, and its number among the layers of this system."""
    seen = dict.fromkeys(self.config.pattern, 0)
    for layer in range(self.config.layers):
      name = self.config.pattern[layer % len(self.config.pattern)]
      yield name, seen[name]
      seen[name] += 1

  def _is_one_scan(self):
    return True

  def _layers(self, x_BTD, state, chunk, policy, layers=None, last_apart=False):
    c, flags = self.config, self._flags(chunk)
    bodies = {name: one_layer(_graph(own), chunk, policy) for name, own in c.by_system.items()}
    if layers is not None:
      after = []
      for i, ((name, _), params, own) in enumerate(
        zip(self._numbers(), layers, state, strict=True)
      ):
        xs = params, own, jax.tree.map(lambda x: x[i], flags)  # noqa: B023
        x_BTD, own = bodies[name](x_BTD, xs)
        after.append(own)
      return self.final_norm(x_BTD), after

    def period(x_BTD, xs):
      shared, mixers, states, flags = xs
      apart = {name: _each((mixers[name], states[name]), c.pattern.count(name)) for name in bodies}
      after: dict[str, list[Any]] = {name: [] for name in bodies}
      of_layers = zip(c.pattern, *(_each(x, len(c.pattern)) for x in (shared, flags)), strict=True)
      for name, own, flag in of_layers:
        mixer, state = apart[name][len(after[name])]
        x_BTD, state = bodies[name](x_BTD, (_with_mixer(own, mixer), state, flag))
        after[name].append(state)
      return x_BTD, {name: _stacked(own) for name, own in after.items()}

    rounds = c.layers // len(c.pattern)
    shared, mixers = _parted(c, nnx.to_pure_dict(nnx.state(self.blocks)))
    by_round = lambda x: x.reshape(rounds, x.shape[0] // rounds, *x.shape[1:])
    xs = jax.tree.map(by_round, (shared, mixers, state, flags))
    scan = scan_last_apart if last_apart else jax.lax.scan
    x_BTD, state = scan(period, x_BTD, xs)
    flat = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # -1 fails without slots
    return self.final_norm(x_BTD), jax.tree.map(flat, state)


def by_layer(config: ModelConfig, blocks: dict[str, Any]) -> list[dict[str, Any]]:
  """The stacked parameters of all layers as a tree for each layer, for `extend`.

  On a CPU they are views of the same memory.
  """
  if not config.pattern:
    return _one_by_one(blocks, config.layers)
  shared, mixers = _parted(config, blocks)
  apart = {n: iter(_one_by_one(mixers[n], own.layers)) for n, own in config.by_system.items()}
  layers = enumerate(_one_by_one(shared, config.layers))
  return [
    _with_mixer(one, next(apart[config.pattern[i % len(config.pattern)]])) for i, one in layers
  ]


def _one_by_one(stacked: Any, layers: int) -> list[Any]:
  leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, stacked))
  return [jax.tree.unflatten(tree, [jax.device_put(x[i]) for x in leaves]) for i in range(layers)]


def _mixer(own: ModelConfig) -> Mixer:
  return MIXERS[own.mixer](own, nnx.Rngs(0))


def _graph(own: ModelConfig) -> Any:
  """The structure of a layer of one system, without arrays."""
  return nnx.split(nnx.eval_shape(lambda: Block(own, nnx.Rngs(0))))[0]


def _parted(config: ModelConfig, blocks: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The parameters that all layers have, and those of the mixers by system."""
  attention = dict(blocks["attention"])
  mixers = attention.pop("mixer", {})  # a mixer may have no parameters
  return {**blocks, "attention": attention}, {n: mixers.get(n, {}) for n in config.by_system}


def _with_mixer(shared: dict[str, Any], mixer: dict[str, Any]) -> dict[str, Any]:
  """The parameters of one layer: undoes `_parted`."""
  return {**shared, "attention": shared["attention"] | ({"mixer": mixer} if mixer else {})}


def _each(tree: Any, count: int) -> list[Any]:
  """Arrays with `count` entries in front as so many trees; their gradients are concatenated."""
  leaves, structure = jax.tree.flatten(tree)
  parts = [jax.lax.split(x, (1,) * count) for x in leaves]
  return [jax.tree.unflatten(structure, [x[i][0] for x in parts]) for i in range(count)]


def _stacked(trees: list[Any]) -> Any:
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)
