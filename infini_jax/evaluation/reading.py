"""Chunks through the model with the state carried: what every evaluation has in common."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import EvalLanes
from infini_jax.data.loader import eval_batches
from infini_jax.evaluation.knock_out import Variant
from infini_jax.models import bind
from infini_jax.models.mixers import MIXERS
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import in_mesh, local_rows, put_batch, shard

Chunk = dict[str, np.ndarray]


def documents_read(documents: int, cut: int, most: int) -> str:
  """How many documents were read, and how many of them only to their first `most` tokens."""
  several = "s" if documents > 1 else ""
  if not cut:
    return f"{documents:,} whole document{several}"
  return f"{documents:,} document{several}, {cut:,} of them cut at {most:,} tokens"


class Reader:
  """Reads lanes of documents; compiled once, whatever is read and however often."""

  def __init__(self, config: Config, mesh: Mesh):
    self._config, self._mesh = config, mesh
    self._score = jax.jit(self._score_chunk, donate_argnums=1)
    self._score_swapped = jax.jit(self._score_segments, donate_argnums=1)
    self._read = jax.jit(self._read_chunk, donate_argnums=1)
    lanes = config.evaluation.lanes
    self._start = jax.jit(lambda params: bind(config.model, params).state(lanes))

  def read(
    self,
    params: Any,
    lanes: EvalLanes,
    variant: Variant,
    wanted: Callable[[Chunk], bool] = lambda chunk: True,
  ) -> Iterator[tuple[Chunk, tuple[jax.Array, jax.Array] | None]]:
    """Yields each chunk with its `(nll_BT, right_BT)`, still on their way from the device.

    Args:
      params: the model's parameters.
      lanes: what is read.
      variant: the whole memory, or a knock-out.
      wanted: whether the targets of a chunk are to be scored; None is yielded where they are not.
    """
    B = self._config.evaluation.lanes
    rows = local_rows(self._mesh, B)
    reserve = MIXERS[self._config.model.mixer].reserve
    cut_L = variant.cut_L(self._config.model.layers)
    state = self._start(params)
    others = Others(B)
    for chunk in eval_batches(lanes, rows, self._config.data.prefetch):
      scored = wanted(chunk)
      if variant.empty and not scored:
        yield chunk, None  # nothing of it would reach a later chunk
        continue
      batch = {k: chunk[k][rows] for k in ("tokens_BT", "targets_BT", "mask_BT", "reset_BS")}
      if variant.empty:
        batch["reset_BS"] = np.ones_like(batch["reset_BS"])
      if variant.swap:  # where a lane has ended, its memory stays, for the others to read
        batch["reset_BS"] = batch["reset_BS"] & (chunk["document_BS"][rows] >= 0)
        from_BS = others.of(chunk, self._config.model.segment_length)
      state = reserve(state, batch["tokens_BT"].shape[1])
      placed = put_batch(batch, self._mesh, B)
      if scored and variant.swap:
        state, scores = self._score_swapped(params, state, placed, from_BS)
        yield chunk, scores
      elif scored:
        state, scores = self._score(params, state, placed, cut_L)
        yield chunk, scores
      else:
        state = self._read(params, state, placed, cut_L)
        yield chunk, None

  def _score_chunk(self, params, state, batch, cut_L):
    model, hidden_BTD, state = self._hidden(params, state, batch, cut_L)
    nll_BT, _, right_BT = cross_entropy(
      hidden_BTD,
      model.head(),
      batch["targets_BT"],
      chunk=self._config.train.loss_chunk,
      softcap=self._config.model.logit_softcap,
    )
    return state, (shard(nll_BT, "__"), shard(right_BT, "__"))  # every host counts all documents

  def _score_segments(self, params, state, batch, from_BS):
    """As `_score_chunk`; a segment of lane b is read with the memory of lane `from_BS[b, s]`."""
    B, S = from_BS.shape
    of_segment = lambda x, s: x.reshape(B, S, -1)[:, s]
    scores = []
    for s in range(S):
      part = {name: of_segment(x, s) for name, x in batch.items()}
      other = jax.tree.map(lambda x, s=s: _of_lanes(x, from_BS[:, s]), state)
      state = self._read_chunk(params, state, part, None)
      scores.append(self._score_chunk(params, other, part, None)[1])
    nll_BT, right_BT = (jnp.concatenate(x, 1) for x in zip(*scores, strict=True))
    return state, (nll_BT, right_BT)

  def _read_chunk(self, params, state, batch, cut_L):
    return self._hidden(params, state, batch, cut_L)[2]

  def _hidden(self, params, state, batch, cut_L):
    model = bind(self._config.model, params)
    hidden_BTD, state = model(
      batch["tokens_BT"],
      state,
      reset_BS=batch["reset_BS"],
      mask_BT=batch["mask_BT"],
      cut_L=cut_L,
    )
    return model, hidden_BTD, state


class Others:
  """Which lane's memory stands for another document's: that which has read about as much.

  Args:
    lanes: side by side.
  """

  def __init__(self, lanes: int):
    self._read_B = np.zeros(lanes, np.int64)  # tokens that each lane's memory holds

  def of(self, chunk: Chunk, segment_length: int) -> np.ndarray:
    """For each segment of a chunk the lane whose memory it is read with, (B, S) int32.

    A lane has its own where no other has read anything: at the very start.
    """
    document_BS, reset_BS = chunk["document_BS"], chunk["reset_BS"]
    lanes, segments = document_BS.shape
    from_BS = np.zeros((lanes, segments), np.int32)
    for s in range(segments):
      own_B = np.where(reset_BS[:, s], 0, self._read_B)
      apart_BB = np.abs(own_B[:, None] - self._read_B[None]).astype(float)
      apart_BB[:, self._read_B == 0] = np.inf
      # Of lanes that have read as much, the next one: else the first would serve all.
      apart_BB += (np.arange(lanes)[None] - np.arange(lanes)[:, None]) % lanes / (2 * lanes)
      np.fill_diagonal(apart_BB, np.inf)
      found_B = apart_BB.argmin(1)
      found = np.isfinite(apart_BB.min(1))
      from_BS[:, s] = np.where(found, found_B, np.arange(lanes))
      reads = document_BS[:, s] >= 0
      self._read_B = np.where(reads, own_B + segment_length, self._read_B)
    return from_BS


def _of_lanes(x: jax.Array, from_B: jax.Array) -> jax.Array:
  """A stacked state's lanes (its second dimension) in another order."""
  if not in_mesh():
    return x[:, from_B]
  whole = shard(x, "_" * x.ndim)[:, shard(from_B, "_")]
  return jax.reshard(whole, jax.typeof(x).sharding.spec)
