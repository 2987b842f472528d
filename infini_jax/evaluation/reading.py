"""Chunks through the model with the state carried: what every evaluation has in common."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from infini_jax.config import Config
from infini_jax.data import EvalLanes
from infini_jax.data.loader import eval_batches
from infini_jax.evaluation.knock_out import Variant
from infini_jax.models import bind
from infini_jax.models.mixers import MIXERS
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import local_rows, put_batch, shard

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
    for chunk in eval_batches(lanes, rows, self._config.data.prefetch):
      scored = wanted(chunk)
      if variant.empty and not scored:
        yield chunk, None  # nothing of it would reach a later chunk
        continue
      batch = {k: chunk[k][rows] for k in ("tokens_BT", "targets_BT", "mask_BT", "reset_BS")}
      if variant.empty:
        batch["reset_BS"] = np.ones_like(batch["reset_BS"])
      state = reserve(state, batch["tokens_BT"].shape[1])
      placed = put_batch(batch, self._mesh, B)
      if scored:
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
