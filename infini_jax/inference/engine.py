"""The compiled programs of a model for reading and generation: arrays in, arrays out.

The carried state is a stream: for every lane, the memory of the closed segments and the keys and
values of the open one. If the state of the mixer has a fixed size, the stream has too.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import Config
from infini_jax.inference.sampling import Sampling, sample
from infini_jax.models import bind
from infini_jax.models.patterned import by_layer
from infini_jax.models.states import has_one_size, held_L, reserve, with_memory_of
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import in_mesh, shard

STEP = 16  # a few tokens are padded to 1, 16, 256, ... tokens
SCORED = 4  # tokens that are scored: to 1, 4, 16, ..., for each of them costs a whole head


class Losses(NamedTuple):
  """The losses of the tokens that follow, in float32 for every compute type.

  Attributes:
    nll_BT: minus the log-likelihood of each, in nats.
    right_BT: bool, whether it is likelier than any other.
  """

  nll_BT: jax.Array
  right_BT: jax.Array


def losses(config: Config, model: Any, hidden_BTD: jax.Array, targets_BT: jax.Array) -> Losses:
  """The losses of targets. Every host has all of them."""
  nll_BT, _, right_BT = cross_entropy(
    hidden_BTD,
    model.head(),
    targets_BT,
    chunk=config.train.loss_chunk,
    softcap=config.model.family.logit_softcap,
  )
  return Losses(shard(nll_BT, "__"), shard(right_BT, "__"))


class Engine:
  """The parameters of a model, and the programs that use them.

  On one CPU, single tokens go through separate layers ("apart"), because slicing stacked weights
  copies all of them at every step. The separate layers are views of the same memory.
  """

  def __init__(self, config: Config, params: Any, apart: bool | None = None):
    """`apart` is for comparisons, and where `Batch` decodes; None chooses automatically."""
    self.config, self._model, self.params = config, config.model, params
    self.segment = config.model.segment_length  # N
    self.chunk = config.evaluation.segments * self.segment  # T
    self._reserve = partial(reserve, config.model)
    apart = self._can_be_apart() if apart is None else apart
    self._layers = self._by_layer() if apart else None
    self._templates: dict[int, Any] = {}
    self._start = jax.jit(self._start_stream, static_argnums=1)
    self._read = jax.jit(self._read_chunk, donate_argnums=1)
    self._extend = jax.jit(self.logits, donate_argnums=1)
    self._stack = jax.jit(lambda params, stream: bind(self._model, params).together(stream))
    self._unstack = jax.jit(lambda params, stream: bind(self._model, params).apart(stream))
    self._renew = jax.jit(_renewed, donate_argnums=0)
    self._pick = jax.jit(_picked)
    self._forget = jax.jit(self._forget_lanes, donate_argnums=0)
    self._score = jax.jit(self._score_chunk, donate_argnums=1, static_argnums=4)
    self._score_open = jax.jit(self._score_segment, donate_argnums=1)
    self._draw = jax.jit(self._draw_tokens, static_argnums=4)

  @cached_property
  def checksum(self) -> str:
    """A hash of all bits of all parameters; it almost surely differs for different parameters."""
    return checksum(self.params)

  def layers(self) -> Any:
    """The parameters of each layer by itself, if single tokens are quicker with them; else None."""
    return self._layers or (self._by_layer() if self._can_be_apart() else None)

  def start(self, lanes: int) -> Any:
    """A new stream, in which no lane has read anything."""
    return self._start(self.params, lanes)

  def renew(self, stream: Any, which_B: np.ndarray) -> Any:
    """The stream with the lanes of `which_B` (bool) reset. The old stream is donated."""
    return self._renew(self.together(stream), self.start(len(which_B)), which_B)

  def pick(self, stream: Any, from_B: np.ndarray) -> Any:
    """A new stream whose lane b is lane `from_B[b]` of this one, which stays valid."""
    return self._pick(self.together(stream), from_B)

  def forget(self, stream: Any, which_B: np.ndarray) -> Any:
    """The stream without the memory of the lanes of `which_B`, which are at a segment border.

    The stream is donated. Layers of full attention in a pattern keep what they read.
    """
    return self._forget(self.together(stream), self.start(len(which_B)), which_B)

  def template(self, lanes: int) -> Any:
    """The shapes and types of a new stream."""
    if lanes not in self._templates:
      shapes = jax.eval_shape(lambda: self._start_stream(self.params, lanes))
      self._templates[lanes] = shapes
    return self._templates[lanes]

  def together(self, stream: Any) -> Any:
    """The stream with its layers stacked, as it is saved; the old stream stays valid."""
    return self._stack(self.params, stream) if isinstance(stream, list) else stream

  def read(self, stream: Any, tokens_BT: np.ndarray) -> Any:
    """Reads a whole chunk in all lanes; no lane may have an open segment. The stream is donated."""
    stream = self._reserve(self.together(stream), tokens_BT.shape[1])
    return self._read(self.params, stream, tokens_BT)

  def extend(
    self, stream: Any, pieces: Sequence[Sequence[int]], step: int = STEP
  ) -> tuple[jax.Array, Any]:
    """Reads some tokens of each lane, or none, at most up to the end of its open segment.

    Args:
      stream: it is donated.
      pieces: the tokens of each lane.
      step: they are padded to 1, `step`, `step`^2, ... tokens: a program for each.

    Returns:
      The logits (B, V) after the last token of each lane, undefined for lanes without tokens; and
      the new stream.
    """
    lengths_B = np.array([len(piece) for piece in pieces])
    tokens_BT = np.zeros((len(pieces), self._padded(lengths_B.max(), step)), np.int32)
    for row, piece in zip(tokens_BT, pieces, strict=True):
      row[: len(piece)] = piece
    mask_BT = np.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
    if self._layers is not None and tokens_BT.shape[1] == 1:
      stream = stream if isinstance(stream, list) else self._unstack(self.params, stream)
      return self._extend(self.params, stream, tokens_BT, mask_BT, self._layers)
    stream = self._reserve(self.together(stream), tokens_BT.shape[1])
    return self._extend(self.params, stream, tokens_BT, mask_BT)

  def score(
    self, stream: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, empty: bool
  ) -> tuple[Losses, Any]:
    """As `read`, with the losses of the targets.

    Args:
      stream: it is donated.
      tokens_BT: a whole chunk.
      targets_BT: the token after each of them.
      empty: the memory is held empty.
    """
    stream = self._reserve(self.together(stream), tokens_BT.shape[1])
    return self._score(self.params, stream, tokens_BT, targets_BT, empty)

  def score_open(
    self, stream: Any, pieces: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
  ) -> tuple[Losses, Any]:
    """As `extend`, with the losses of the targets; those of padding are undefined."""
    lengths_B = np.array([len(piece) for piece in pieces])
    shape = len(pieces), self._padded(lengths_B.max(), SCORED)
    tokens_BT, targets_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, (piece, wanted) in enumerate(zip(pieces, targets, strict=True)):
      tokens_BT[b, : len(piece)], targets_BT[b, : len(piece)] = piece, wanted
    mask_BT = np.arange(shape[1])[None] < lengths_B[:, None]
    stream = self._reserve(self.together(stream), shape[1])
    return self._score_open(self.params, stream, tokens_BT, targets_BT, mask_BT)

  def draw(
    self,
    logits_BV: jax.Array,
    seeds_B: np.ndarray,
    positions_B: np.ndarray,
    recent_BQ: np.ndarray,
    sampling: Sampling,
  ) -> np.ndarray:
    """Draws the next token of each lane, (B,); it depends only on the arguments."""
    return np.asarray(self._draw(logits_BV, seeds_B, positions_B, recent_BQ, sampling))

  def paddings(self, step: int = STEP) -> list[int]:
    """The numbers of tokens that `extend` is compiled for."""
    sizes = [1]
    while sizes[-1] < self.segment:
      sizes.append(min(sizes[-1] * step, self.segment))
    return sizes

  def _padded(self, size: int, step: int) -> int:
    return next(length for length in self.paddings(step) if length >= size)

  def _by_layer(self):
    return by_layer(self.config.model, self.params["blocks"])

  def _can_be_apart(self) -> bool:
    """Whether the state has a fixed size, each layer has its own, and there is one CPU."""
    if not self._model.memory.layered or not has_one_size(self._model):
      return False
    return not in_mesh() and jax.default_backend() == "cpu"

  def _start_stream(self, params, lanes):
    model = bind(self._model, params)
    return model.open(model.state(lanes), lanes)

  def _read_chunk(self, params, stream, tokens_BT):
    model = bind(self._model, params)
    _, state = model(tokens_BT, model.close(stream), state_only=True)
    return model.open(state, len(tokens_BT))

  def logits(
    self, params: Any, stream: Any, tokens_BT: Any, mask_BT: Any, *layers: Any
  ) -> tuple[jax.Array, Any]:
    """As `extend`, to be compiled as a part of another program: arrays in, arrays out."""
    model = bind(self._model, params)
    hidden_BTD, stream = model.extend(tokens_BT, stream, mask_BT, *layers)
    last_B = jnp.maximum(mask_BT.sum(1) - 1, 0)
    hidden_BTD = jnp.take_along_axis(shard(hidden_BTD, "B__"), last_B[:, None, None], axis=1)
    return shard(model.logits(hidden_BTD)[:, 0], "__"), stream  # sampling sorts the vocabulary

  def _score_chunk(self, params, stream, tokens_BT, targets_BT, empty):
    model = bind(self._model, params)
    how: dict[str, Any] = {}
    if empty:
      held = held_L(self._model)
      B, S = tokens_BT.shape[0], tokens_BT.shape[1] // self.segment
      how = {"reset_BS": jnp.ones((B, S), bool)} if held is None else {"empty_L": jnp.array(held)}
    hidden_BTD, state = model(tokens_BT, model.close(stream), **how)
    found = losses(self.config, model, hidden_BTD, targets_BT)
    return found, model.open(state, len(tokens_BT))

  def _score_segment(self, params, stream, tokens_BT, targets_BT, mask_BT):
    model = bind(self._model, params)
    hidden_BTD, stream = model.extend(tokens_BT, stream, mask_BT)
    return losses(self.config, model, hidden_BTD, targets_BT), stream

  def _forget_lanes(self, stream, start, which_B):
    return with_memory_of(self._model, stream, _renewed(stream, start, which_B))

  def _draw_tokens(self, logits_BV, seeds_B, positions_B, recent_BQ, sampling):
    key = lambda seed, position: jax.random.fold_in(jax.random.key(seed), position)
    return sample(logits_BV, jax.vmap(key)(seeds_B, positions_B), sampling, recent_BQ)


def checksum(params: Any) -> str:
  """A hash of all bits of all parameters."""
  sums = np.asarray(_sums(jax.tree.leaves(params))).tolist()
  return "".join(f"{value:08x}" for value in sums)


@jax.jit
def _sums(leaves):
  """For each array, the sum of its bits as numbers with odd weights by position, modulo 2^32."""

  def one(x):
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32).reshape(-1)
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

  return jnp.stack([one(x) for x in leaves])


def _renewed(stream: Any, start: Any, which_B: jax.Array) -> Any:
  def one(old, new):
    """Arrays (L, B, slots...); a new state that grows has no slots yet."""
    room = [(0, a - b) for a, b in zip(old.shape, new.shape, strict=True)]
    return where_lane(which_B, jnp.pad(new, room), old, axis=1)

  return jax.tree.map(one, stream, start)


def _picked(stream: Any, from_B: jax.Array) -> Any:
  return jax.tree.map(lambda x: jnp.take(x, from_B, axis=1), stream)
