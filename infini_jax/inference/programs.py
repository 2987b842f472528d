"""The programs of a model for reading and generation: arrays in, arrays out.

The carried state is a stream: for every lane, the memory of the closed segments and the keys and
values of the open one. If the state of the mixer has a fixed size, the stream has too.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infini_jax.config import ModelConfig
from infini_jax.inference.sampling import sample
from infini_jax.models import bind
from infini_jax.models.states import held_L, with_memory_of
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import shard

KEPT = 8  # models whose compiled programs are kept in the process


class Losses(NamedTuple):
  """The losses of the tokens that follow, in float32 for every compute type.

  Attributes:
    nll_BT: minus the log-likelihood of each, in nats.
    right_BT: bool, whether it is likelier than any other.
  """

  nll_BT: jax.Array
  right_BT: jax.Array


def losses(model: Any, hidden_BTD: jax.Array, targets_BT: jax.Array, loss_chunk: int) -> Losses:
  """The losses of targets. Every host has all of them.

  Args:
    model: the model with its parameters.
    hidden_BTD: its outputs.
    targets_BT: the token after each of them.
    loss_chunk: `config.train.loss_chunk`.
  """
  softcap = model.config.family.logit_softcap
  nll_BT, _, right_BT = cross_entropy(
    hidden_BTD, model.head(), targets_BT, chunk=loss_chunk, softcap=softcap
  )
  return Losses(shard(nll_BT, "__"), shard(right_BT, "__"))


class Programs:
  """The programs that are compiled for a model. `programs_of` returns them.

  Each takes the parameters, or only a stream. `read`, `extend`, `renew`, `forget`, `score` and
  `score_open` donate the stream.
  """

  def __init__(self, model: ModelConfig, loss_chunk: int):
    self.model, self._loss_chunk = model, loss_chunk
    self.start = jax.jit(self._start_stream, static_argnums=1)
    self.read = jax.jit(self._read_chunk, donate_argnums=1)
    self.extend = jax.jit(self.logits, donate_argnums=1)
    self.stack = jax.jit(lambda params, stream: bind(model, params).together(stream))
    self.unstack = jax.jit(lambda params, stream: bind(model, params).apart(stream))
    self.renew = jax.jit(_renewed, donate_argnums=0)
    self.pick = jax.jit(_picked)
    self.forget = jax.jit(self._forget_lanes, donate_argnums=0)
    self.score = jax.jit(self._score_chunk, donate_argnums=1, static_argnums=4)
    self.score_open = jax.jit(self._score_segment, donate_argnums=1)
    self.draw = jax.jit(self._draw_tokens, static_argnums=4)

  def _start_stream(self, params, lanes):
    model = bind(self.model, params)
    return model.open(model.state(lanes), lanes)

  def _read_chunk(self, params, stream, tokens_BT):
    model = bind(self.model, params)
    _, state = model(tokens_BT, model.close(stream), state_only=True)
    return model.open(state, len(tokens_BT))

  def logits(
    self, params: Any, stream: Any, tokens_BT: Any, mask_BT: Any, *layers: Any
  ) -> tuple[jax.Array, Any]:
    """`extend`, to be compiled as a part of another program.

    Returns:
      The logits (B, V) after the last token of each lane, and the new stream.
    """
    model = bind(self.model, params)
    hidden_BTD, stream = model.extend(tokens_BT, stream, mask_BT, *layers)
    last_B = jnp.maximum(mask_BT.sum(1) - 1, 0)
    hidden_BTD = jnp.take_along_axis(shard(hidden_BTD, "B__"), last_B[:, None, None], axis=1)
    return shard(model.logits(hidden_BTD)[:, 0], "__"), stream  # sampling sorts the vocabulary

  def _score_chunk(self, params, stream, tokens_BT, targets_BT, empty):
    model = bind(self.model, params)
    how: dict[str, Any] = {}
    if empty:
      held = held_L(self.model)
      B, S = tokens_BT.shape[0], tokens_BT.shape[1] // self.model.segment_length
      how = {"reset_BS": jnp.ones((B, S), bool)} if held is None else {"empty_L": jnp.array(held)}
    hidden_BTD, state = model(tokens_BT, model.close(stream), **how)
    found = losses(model, hidden_BTD, targets_BT, self._loss_chunk)
    return found, model.open(state, len(tokens_BT))

  def _score_segment(self, params, stream, tokens_BT, targets_BT, mask_BT):
    model = bind(self.model, params)
    hidden_BTD, stream = model.extend(tokens_BT, stream, mask_BT)
    return losses(model, hidden_BTD, targets_BT, self._loss_chunk), stream

  def _forget_lanes(self, stream, start, which_B):
    return with_memory_of(self.model, stream, _renewed(stream, start, which_B))

  def _draw_tokens(self, logits_BV, seeds_B, positions_B, recent_BQ, sampling):
    key = lambda seed, position: jax.random.fold_in(jax.random.key(seed), position)
    return sample(logits_BV, jax.vmap(key)(seeds_B, positions_B), sampling, recent_BQ)


@lru_cache(maxsize=KEPT)
def programs_of(model: ModelConfig, loss_chunk: int) -> Programs:
  """The programs of a model: the same object for each of its runs in this process."""
  return Programs(model, loss_chunk)


def _renewed(stream: Any, start: Any, which_B: jax.Array) -> Any:
  def one(old, new):
    """Arrays (L, B, slots...); a new state that grows has no slots yet."""
    room = [(0, a - b) for a, b in zip(old.shape, new.shape, strict=True)]
    return where_lane(which_B, jnp.pad(new, room), old, axis=1)

  return jax.tree.map(one, stream, start)


def _picked(stream: Any, from_B: jax.Array) -> Any:
  return jax.tree.map(lambda x: jnp.take(x, from_B, axis=1), stream)
