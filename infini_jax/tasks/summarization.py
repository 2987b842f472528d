"""Summaries: pairs of a document and its summary, as in BookSum (arXiv 2105.08209).

A pair is read as [bos, document, mark, summary, eos]; the mark is a text before the summary.
"""

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.lanes.documents import ALL, Batch, Rows
from infini_jax.data.lanes.order import Shuffle
from infini_jax.data.store.store import Documents, Store
from infini_jax.tasks.example import Part, overlaps, weighed
from infini_jax.tasks.lanes import empty_asking, lay

MARK = "\n\nSummary:\n"


class Pairs:
  """A store whose documents have summaries.

  Raises:
    InputError: the documents have no summaries.
  """

  def __init__(self, store: Store):
    if not store.has_summaries:
      raise InputError(
        f"corpus {store.source!r} has no summaries: choose one that has, such as "
        f"tfds:booksum/book, or name the field with ?summary=FIELD, and prepare it again"
      )
    self.store, self.tokenizer = store, store.tokenizer
    self.fingerprint = f"{store.fingerprint} summaries"
    self.mark = self.tokenizer.encode(MARK)

  def split(self, name: str, document: str = "") -> tuple[Documents, Documents]:
    """The documents of a split, or one of them, and their summaries, in the same order."""
    return self.store.split(name, document), self.store.summaries(name, document)

  def prompt(self, ids: np.ndarray) -> np.ndarray:
    """The input before the first token of a summary: bos, document, mark; (n,) int32."""
    return np.concatenate([[self.tokenizer.bos], ids, self.mark]).astype(np.int32)


class Told:
  """The pairs of a split as documents, for `EvalLanes`: document, mark, summary.

  Attributes:
    tokens: (pairs,) the tokens of each pair.
    first_D: (pairs,) the place of the first token of each summary.

  Raises:
    InputError: no document of the split has a summary.
  """

  def __init__(self, pairs: Pairs, split: str):
    self._mark, (self._documents, self._summaries) = pairs.mark, pairs.split(split)
    self._told = np.flatnonzero(self._summaries.tokens)
    if not len(self._told):
      raise InputError(
        f"corpus {pairs.store.source!r}: no summary for {split}; choose another, or set "
        f"config.train.eval_every=0"
      )
    self.first_D = self._documents.tokens[self._told] + len(self._mark)
    self.tokens = self.first_D + self._summaries.tokens[self._told]

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of a pair, (stop - start,) int32."""
    pair, mark = int(self._told[document]), len(self._mark)
    sizes = int(self._documents.tokens[pair]), mark, int(self._summaries.tokens[pair])
    read = (
      lambda a, b: self._documents.read(pair, a, b),
      lambda a, b: self._mark[a:b],
      lambda a, b: self._summaries.read(pair, a, b),
    )
    found = (read[i](a, b) for i, a, b in overlaps(start, stop, sizes))
    return np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int32)


class PairLanes:
  """The endless training on pairs: one pair for each lane and chunk, each epoch in a new order.

  A document that is too long for the chunk is cut at its end. A summary is cut after half a chunk,
  and then has no eos. The loss weight of a summary is 1 in total, whatever its length; that of the
  document is `task.context_weight`.

  Raises:
    InputError: a chunk is too short, or no training document has a summary.
  """

  def __init__(self, pairs: Pairs, config: Config):
    self._pairs, self._documents, self._summaries = pairs, *pairs.split("train")
    self.lanes, self.segments = config.data.lanes, config.data.segments
    self._N, self._context = config.model.segment_length, config.task.context_weight
    if self.segments * self._N < 4 * len(pairs.mark):
      raise InputError(
        f"config.data.segments={self.segments} of config.model.segment_length={self._N} tokens "
        f"hold no document with its summary; raise config.data.segments"
      )
    self._told = np.flatnonzero(self._summaries.tokens)  # those with a summary
    if not len(self._told):
      raise InputError(f"corpus {pairs.store.source!r}: no summary for training; choose another")
    self._order = Shuffle(np.ones_like(self._told), self.lanes, config.train.seed)

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it, with the arrays of `TaskLanes.batch` without warm memory."""
    lanes = np.arange(self.lanes)[rows].tolist()
    batch = empty_asking(len(lanes), self.segments, self._N)
    for row, lane in enumerate(lanes):
      (piece,) = self._order.pieces(lane, k, k + 1)
      self._fill({name: values[row] for name, values in batch.items()}, self._told[piece.document])
    return batch

  def _fill(self, row: Batch, pair: np.integer) -> None:
    T, mark, tokenizer = len(row["tokens_BT"]), self._pairs.mark, self._pairs.tokenizer
    read = lambda documents, room: documents.read(pair, 0, min(room, int(documents.tokens[pair])))
    most = T // 2 + 1  # targets of the summary
    told = np.append(read(self._summaries, most), tokenizer.eos)[:most]
    document = read(self._documents, T - len(mark) - len(told))
    parts = [Part(ids, len(ids)) for ids in (document, mark, told)]
    example = weighed(parts, [2], self._context)
    lay(example, row, 0, tokenizer.bos)
    row["reset_BS"][0] = True
    row["reset_BS"][-(-len(example) // self._N) :] = True
