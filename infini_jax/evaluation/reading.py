"""Reads chunks with the model and a carried state: what all evaluations have in common."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config, ModelConfig
from infini_jax.data import EvalLanes
from infini_jax.data.lanes.loader import eval_batches
from infini_jax.evaluation.knock_out import Variant
from infini_jax.inference.programs import KEPT, Losses, losses
from infini_jax.models import bind
from infini_jax.models.states import held_L, reserve, with_memory_of
from infini_jax.ops.lanes import where_lane
from infini_jax.parallel import in_mesh, local_rows, put_batch, shard

Chunk = dict[str, np.ndarray]


def documents_read(documents: int, cut: int, most: int) -> str:
  """A text: how many documents were read, and how many only up to `most` tokens."""
  several = "s" if documents > 1 else ""
  if not cut:
    return f"{documents:,} whole document{several}"
  return f"{documents:,} document{several}, {cut:,} of them cut at {most:,} tokens"


class _Programs:
  """The programs that read chunks with a model. All but `start` donate the state."""

  def __init__(self, model: ModelConfig, loss_chunk: int):
    self._model, self._loss_chunk = model, loss_chunk
    self.score = jax.jit(self._score_chunk, donate_argnums=1)
    self.score_swapped = jax.jit(self._score_segments, donate_argnums=1)
    self.read = jax.jit(self._read_chunk, donate_argnums=1)
    self.start = jax.jit(lambda p, lanes: bind(model, p).state(lanes), static_argnums=1)
    self.enter = jax.jit(functools.partial(where_lane, axis=1), donate_argnums=2)

  def _score_chunk(self, params, state, batch, cut_L, empty_L=None):
    model, hidden_BTD, state = self._hidden(params, state, batch, cut_L, empty_L)
    return state, losses(model, hidden_BTD, batch["targets_BT"], self._loss_chunk)

  def _score_segments(self, params, state, batch, from_BS):
    """As `_score_chunk`; segment s of lane b is read with the memory of lane `from_BS[b, s]`."""
    B, S = from_BS.shape

    def segment(state, xs):
      part, from_B = xs
      other = jax.tree.map(lambda x: _of_lanes(x, from_B), state)
      other = with_memory_of(self._model, state, other)
      scores = self._score_chunk(params, other, part, None)[1]
      return self._read_chunk(params, state, part, None), scores

    one_by_one = lambda x: shard(x.reshape(B, S, -1).swapaxes(0, 1), "_B_")
    by_segment = jax.tree.map(one_by_one, batch)
    state, scores = jax.lax.scan(segment, state, (by_segment, from_BS.T))
    return state, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, -1), scores)

  def _read_chunk(self, params, state, batch, cut_L, empty_L=None):
    return self._hidden(params, state, batch, cut_L, empty_L, state_only=True)[2]

  def _hidden(self, params, state, batch, cut_L, empty_L, state_only=False):
    model = bind(self._model, params)
    more = {} if empty_L is None else {"empty_L": empty_L}  # only layers with their own state do it
    hidden_BTD, state = model(
      batch["tokens_BT"],
      state,
      reset_BS=batch["reset_BS"],
      mask_BT=batch["mask_BT"],
      cut_L=cut_L,
      state_only=state_only,
      **more,
    )
    return model, hidden_BTD, state


@functools.lru_cache(maxsize=KEPT)
def _programs_of(model: ModelConfig, loss_chunk: int) -> _Programs:
  """The programs of a model: the same object for each of its runs in this process."""
  return _Programs(model, loss_chunk)


class Reader:
  """Reads lanes of documents with a model."""

  def __init__(self, config: Config, mesh: Mesh):
    self._config, self._mesh = config, mesh
    self._programs = _programs_of(config.model, config.train.loss_chunk)

  def read(
    self,
    params: Any,
    lanes: EvalLanes,
    variant: Variant,
    wanted: Callable[[Chunk], bool] = lambda chunk: True,
    forks: Mapping[int, Any] | None = None,
  ) -> "Reading":
    """A pass over some lanes, as an iterator.

    Args:
      params: the parameters of the model.
      lanes: the lanes to read.
      variant: the whole memory, or an ablation.
      wanted: whether to score the targets of a chunk.
      forks: states of one lane, by the number of tokens that they hold, for documents that start
        after these tokens.
    """
    return Reading(self, params, lanes, variant, wanted, {} if forks is None else forks)


class Reading:
  """A pass over lanes of documents; yields each chunk with its scores `(nll_BT, right_BT)`.

  Scores are arrays on the device that may not be computed yet; None where they are not wanted. With
  the result of `kept`, between two chunks, another pass over the same lanes can continue there.

  Attributes:
    done: the number of chunks read.
    state: the state of the lanes after these chunks.
  """

  def __init__(self, reader: Reader, params, lanes, variant, wanted, forks):
    self._reader, self._params, self._lanes = reader, params, lanes
    self._variant, self._wanted, self._forks = variant, wanted, forks
    self._others = Others(lanes.lanes)
    # The layers whose memory is held empty, where others hold the text itself.
    self._held_L = held_L(reader._config.model) if variant.empty else None
    self.done = 0
    self.state = reader._programs.start(params, lanes.lanes)

  def kept(self) -> dict[str, np.ndarray]:
    """All arrays that the rest of the pass depends on, by name."""
    leaves = jax.tree.leaves(jax.device_get(self.state))
    named = {f"state.{i}": leaf for i, leaf in enumerate(leaves)}
    return {"done": np.array(self.done), "others": self._others.read_B, **named}

  def go_on(self, kept: Mapping[str, np.ndarray]) -> None:
    """Continues from the place of the pass that gave `kept`."""
    self.done, self._others.read_B = int(kept["done"]), kept["others"]
    leaves, structure = jax.tree.flatten(self.state)
    found = [jax.device_put(kept[f"state.{i}"], x.sharding) for i, x in enumerate(leaves)]
    self.state = jax.tree.unflatten(structure, found)

  def __iter__(self) -> Iterator[tuple[Chunk, Losses | None]]:
    """Reads the chunks from `done` on."""
    d, B = self._reader._config.data, self._lanes.lanes
    rows = local_rows(self._reader._mesh, B)
    for chunk in eval_batches(self._lanes, rows, d.prefetch, self.done, d.patience):
      scores = self._step(chunk, rows)
      self.done += 1
      yield chunk, scores

  def _step(self, chunk: Chunk, rows: Any) -> Losses | None:
    reader, variant, params = self._reader, self._variant, self._params
    config = reader._config
    scored = self._wanted(chunk)
    empty = variant.empty and self._held_L is None  # nothing else is carried
    if empty and not scored:
      return None  # a chunk without scores has no effect here
    batch = {k: chunk[k][rows] for k in ("tokens_BT", "targets_BT", "mask_BT", "reset_BS")}
    if empty:
      batch["reset_BS"] = np.ones_like(batch["reset_BS"])
    else:
      for read in np.unique(chunk["skip_B"][chunk["skip_B"] > 0]).tolist():
        self.state = reader._programs.enter(chunk["skip_B"] == read, self._forks[read], self.state)
    if variant.swap:  # the memory of a lane that has ended stays readable
      batch["reset_BS"] = batch["reset_BS"] & (chunk["document_BS"][rows] >= 0)
      from_BS = self._others.of(chunk, config.model.segment_length)
    self.state = reserve(config.model, self.state, batch["tokens_BT"].shape[1])
    placed = put_batch(batch, reader._mesh, self._lanes.lanes)
    if scored and variant.swap:
      self.state, scores = reader._programs.score_swapped(params, self.state, placed, from_BS)
      return scores
    flags = variant.cut_L(config.model.layers), self._held_L
    if scored:
      self.state, scores = reader._programs.score(params, self.state, placed, *flags)
      return scores
    self.state = reader._programs.read(params, self.state, placed, *flags)
    return None


class Others:
  """Chooses, for `swap`, the lane with another document that has read about as many tokens.

  Args:
    lanes: B.
  """

  def __init__(self, lanes: int):
    self.read_B = np.zeros(lanes, np.int64)  # tokens that each lane's memory holds

  def of(self, chunk: Chunk, segment_length: int) -> np.ndarray:
    """For each segment of a chunk, the lane whose memory it reads, (B, S) int32.

    It is the segment's own lane if no other lane has read anything, which is at the start.
    """
    document_BS, reset_BS = chunk["document_BS"], chunk["reset_BS"]
    lanes, segments = document_BS.shape
    self.read_B = np.where(chunk["skip_B"] > 0, chunk["skip_B"], self.read_B)
    from_BS = np.zeros((lanes, segments), np.int32)
    for s in range(segments):
      own_B = np.where(reset_BS[:, s], 0, self.read_B)
      apart_BB = np.abs(own_B[:, None] - self.read_B[None]).astype(float)
      apart_BB[:, self.read_B == 0] = np.inf
      # Of lanes that have read equally much, the next one; otherwise all would choose the first.
      apart_BB += (np.arange(lanes)[None] - np.arange(lanes)[:, None]) % lanes / (2 * lanes)
      np.fill_diagonal(apart_BB, np.inf)
      found_B = apart_BB.argmin(1)
      found = np.isfinite(apart_BB.min(1))
      from_BS[:, s] = np.where(found, found_B, np.arange(lanes))
      reads = document_BS[:, s] >= 0
      self.read_B = np.where(reads, own_B + segment_length, self.read_B)
    return from_BS


def _of_lanes(x: jax.Array, from_B: jax.Array) -> jax.Array:
  """The lanes of a stacked state (its second dimension) in another order."""
  if not in_mesh():
    return x[:, from_B]
  whole = shard(x, "_" * x.ndim)[:, shard(from_B, "_")]
  return jax.reshard(whole, jax.typeof(x).sharding.spec)
