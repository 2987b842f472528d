"""The parameters of a model, and what is read and written with them."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import Config
from infini_jax.inference.programs import Losses, programs_of
from infini_jax.inference.sampling import Sampling
from infini_jax.models.patterned import by_layer
from infini_jax.models.states import has_one_size, reserve
from infini_jax.parallel import in_mesh

STEP = 16  # a few tokens are padded to 1, 16, 256, ... tokens
SCORED = 4  # tokens that are scored: to 1, 4, 16, ..., for each of them costs a whole head


class Engine:
  """The parameters of a model, and the programs that use them (`Programs`).

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
    self.programs = programs_of(config.model, config.train.loss_chunk)

  @cached_property
  def checksum(self) -> str:
    """A hash of all bits of all parameters; it almost surely differs for different parameters."""
    return checksum(self.params)

  def layers(self) -> Any:
    """The parameters of each layer by itself, if single tokens are quicker with them; else None."""
    return self._layers or (self._by_layer() if self._can_be_apart() else None)

  def start(self, lanes: int) -> Any:
    """A new stream, in which no lane has read anything."""
    return self.programs.start(self.params, lanes)

  def renew(self, stream: Any, which_B: np.ndarray) -> Any:
    """The stream with the lanes of `which_B` (bool) reset. The old stream is donated."""
    return self.programs.renew(self.together(stream), self.start(len(which_B)), which_B)

  def pick(self, stream: Any, from_B: np.ndarray) -> Any:
    """A new stream whose lane b is lane `from_B[b]` of this one, which stays valid."""
    return self.programs.pick(self.together(stream), from_B)

  def forget(self, stream: Any, which_B: np.ndarray) -> Any:
    """The stream without the memory of the lanes of `which_B`, which are at a segment border.

    The stream is donated. Layers of full attention in a pattern keep what they read.
    """
    return self.programs.forget(self.together(stream), self.start(len(which_B)), which_B)

  def template(self, lanes: int) -> Any:
    """The shapes and types of a new stream."""
    if lanes not in self._templates:
      shapes = jax.eval_shape(lambda p: self.programs.start(p, lanes), self.params)
      self._templates[lanes] = shapes
    return self._templates[lanes]

  def together(self, stream: Any) -> Any:
    """The stream with its layers stacked, as it is saved; the old stream stays valid."""
    return self.programs.stack(self.params, stream) if isinstance(stream, list) else stream

  def read(self, stream: Any, tokens_BT: np.ndarray) -> Any:
    """Reads a whole chunk in all lanes; no lane may have an open segment. The stream is donated."""
    stream = self._reserve(self.together(stream), tokens_BT.shape[1])
    return self.programs.read(self.params, stream, tokens_BT)

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
      stream = stream if isinstance(stream, list) else self.programs.unstack(self.params, stream)
      return self.programs.extend(self.params, stream, tokens_BT, mask_BT, self._layers)
    stream = self._reserve(self.together(stream), tokens_BT.shape[1])
    return self.programs.extend(self.params, stream, tokens_BT, mask_BT)

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
    return self.programs.score(self.params, stream, tokens_BT, targets_BT, empty)

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
    return self.programs.score_open(self.params, stream, tokens_BT, targets_BT, mask_BT)

  def draw(
    self,
    logits_BV: jax.Array,
    seeds_B: np.ndarray,
    positions_B: np.ndarray,
    recent_BQ: np.ndarray,
    sampling: Sampling,
  ) -> np.ndarray:
    """Draws the next token of each lane, (B,); it depends only on the arguments."""
    return np.asarray(self.programs.draw(logits_BV, seeds_B, positions_B, recent_BQ, sampling))

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
