"""Document lanes: which tokens of which document are where in which batch.

A lane is one batch row. It follows one document, segment after segment, to the document's end. The
next document starts at the next segment, with a reset. Only the last segment of a document may be
short: the rest of it is padding, and masked. Batch `k` is a pure function of (documents, seed, k).
Therefore a run needs only its step to continue, and every host can read its own rows.

Shapes: B lanes, S segments of a chunk, N tokens of a segment, T = S*N.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from infini_jax.config import InputError
from infini_jax.data.lanes.order import Mix, Mixed, Piece, Schedule, Shuffle

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray  # a choice of the B lanes
ALL = slice(None)


class TokenDocuments(Protocol):
  """The documents that lanes can read, such as `store.Documents`."""

  tokens: np.ndarray  # (documents,) the number of tokens of each document

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` of a document: (stop - start,) int32."""
    ...


class Named(TokenDocuments, Protocol):
  """Documents whose names are known."""

  @property
  def names(self) -> Sequence[str]:
    """The name of each document."""
    ...


class TrainLanes:
  """The endless order of training.

  Every epoch is a new permutation of the documents. Lane b gets documents b, b+B,
  b+2B, ... of the sequence of all epochs (`order.Mixed` defines the order of several stores). A
  document of n tokens t has n+1 predictions: inputs [bos, t_0 .. t_{n-1}], targets
  [t_0 .. t_{n-1}, eos].

  Args:
    documents: the documents of the train split.
    bos: the id before the first token of a document.
    eos: the target after the last token of a document.
    lanes: B, over all hosts.
    segments: S.
    segment_length: N.
    seed: the seed of the order.
    carry_state: False also sets the reset of the first segment of every chunk.
    mix: how several stores are mixed; None for one store.

  Raises:
    InputError: all documents together are shorter than one segment.
  """

  def __init__(
    self,
    documents: Named,
    *,
    bos: int,
    eos: int,
    lanes: int,
    segments: int,
    segment_length: int,
    seed: int,
    carry_state: bool = True,
    mix: Mix | None = None,
  ):
    total = int(documents.tokens.sum())
    if total < segment_length:
      raise InputError(
        f"the corpus is shorter than one segment: {total} training tokens, segment_length "
        f"{segment_length}; add text or set a smaller config.model.segment_length"
      )
    self.lanes, self.segments, self.segment_length = lanes, segments, segment_length
    self._documents, self._bos, self._eos = documents, bos, eos
    self._carry_state = carry_state
    predictions_X = documents.tokens + 1
    segments_X = -(-predictions_X // segment_length)
    self._order = (
      Mixed(segments_X, predictions_X, mix, lanes, seed)
      if mix
      else Shuffle(segments_X, lanes, seed)
    )

  def names(self, k: int) -> list[str]:
    """The names of the documents in batch `k`, in the order of the lanes."""
    lanes, S = range(self.lanes), self.segments
    pieces = (p for b in lanes for p in self._order.pieces(b, k * S, (k + 1) * S))
    return list(dict.fromkeys(self._documents.names[piece.document] for piece in pieces))

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it; only the tokens of these rows are read.

    Args:
      k: 0 or more, without an upper limit.
      rows: which of the B lanes.

    Returns:
      tokens_BT: int32, the inputs; 0 on padding.
      targets_BT: int32, the token after each; 0 on padding.
      mask_BT: bool, False on padding.
      reset_BS: bool, True at a document's first segment.
    """
    lanes = np.arange(self.lanes)[rows].tolist()
    batch = empty_batch(len(lanes), self.segments, self.segment_length)
    for row, lane in enumerate(lanes):
      for piece in self._order.pieces(lane, k * self.segments, (k + 1) * self.segments):
        n = int(self._documents.tokens[piece.document])
        _fill(batch, row, piece, self._documents, n, self._bos, self._eos)
    if not self._carry_state:
      batch["reset_BS"][:, 0] = True
    return batch


class EvalLanes:
  """Whole documents in parallel lanes, each read once; every token is predicted once.

  A document of n tokens t has n predictions: inputs [bos, t_0 .. t_{n-2}], targets t. The longest
  document comes first, and each goes to the lane that is free first. So all lanes end at about the
  same time.

  Args:
    documents: the documents of any split.
    bos: the id before the first token of a document; one for all, or (documents,) one for each.
    lanes: B, over all hosts.
    segments: S.
    segment_length: N.
    max_documents: read only this many documents, from the first on; 0: all.
    max_tokens: read at most this many tokens of each document; 0: all.
    input_tokens: tokens between two resets in a document, whole segments; 0: one reset, at the
      start.
    skip_X: tokens at the start of each document, whole chunks, that are not read here, because
      another state has read them; the document continues at the start of a chunk.

  Attributes:
    predictions: int, the sum of all masks.

  Raises:
    InputError: there are no documents.
  """

  def __init__(
    self,
    documents: TokenDocuments,
    *,
    bos: int | np.ndarray,
    lanes: int,
    segments: int,
    segment_length: int,
    max_documents: int = 0,
    max_tokens: int = 0,
    input_tokens: int = 0,
    skip_X: np.ndarray | None = None,
  ):
    tokens = np.asarray(documents.tokens)[: max_documents or None]
    if not len(tokens):
      raise InputError(
        "no documents to evaluate: this split is empty; add some, or choose another split (while "
        "training: set config.train.eval_every=0)"
      )
    self._tokens = np.minimum(tokens, max_tokens) if max_tokens else tokens
    self._skip_X = np.zeros_like(self._tokens) if skip_X is None else skip_X
    self.predictions = int((self._tokens - self._skip_X).sum())
    self.lanes, self.segments, self.segment_length = lanes, segments, segment_length
    self._documents, self._input_segments = documents, input_tokens // segment_length
    self._bos_X = np.broadcast_to(bos, len(documents.tokens))
    size_X = -(-(self._tokens - self._skip_X) // segment_length)
    if skip_X is not None:
      size_X = -(-size_X // segments) * segments
    self._order = Schedule(size_X, lanes)
    self._chunks = -(-len(self._order) // segments)

  def __len__(self) -> int:
    """The number of chunks until every lane has ended."""
    return self._chunks

  def __iter__(self) -> Iterator[Batch]:
    return (self.chunk(i) for i in range(len(self)))

  def chunk(self, i: int, rows: Rows = ALL, read: Rows = ALL) -> Batch:
    """Chunk `i` of the evaluation, or some rows of it.

    Args:
      i: 0 to `len(self) - 1`.
      rows: which of the B lanes.
      read: the lanes whose tokens are read; the tokens and targets of the other lanes are 0.

    Returns:
      The arrays of `TrainLanes.batch`, and
      document_BS: int32, the document of each segment; -1 where the lane is empty.
      position_BS: int64, the position of the segment's first target in its document; 0 where empty.
      skip_B: int64, the skipped tokens of a document that begins in this chunk.
    """
    lanes = np.arange(self.lanes)[rows].tolist()
    held = set(np.arange(self.lanes)[read].tolist())
    chunk = empty_batch(len(lanes), self.segments, self.segment_length)
    chunk["reset_BS"][:] = True  # an empty segment has no state
    chunk["document_BS"] = np.full((len(lanes), self.segments), -1, np.int32)
    chunk["position_BS"] = np.zeros((len(lanes), self.segments), np.int64)
    chunk["skip_B"] = np.zeros(len(lanes), np.int64)
    for row, lane in enumerate(lanes):
      for piece in self._order.pieces(lane, i * self.segments, (i + 1) * self.segments):
        n, skip = int(self._tokens[piece.document]), int(self._skip_X[piece.document])
        if piece.first == 0:
          chunk["skip_B"][row] = skip
        first = piece.first + skip // self.segment_length
        left = -(-n // self.segment_length) - first  # the rest of the last chunk is empty
        piece = piece._replace(first=first, segments=min(piece.segments, left))
        bos = int(self._bos_X[piece.document])
        _fill(chunk, row, piece, self._documents, n, bos, None, read=lane in held)
        at = slice(piece.slot, piece.slot + piece.segments)
        chunk["document_BS"][row, at] = piece.document
        numbers = np.arange(piece.first, piece.first + piece.segments)
        chunk["position_BS"][row, at] = numbers * self.segment_length
        if self._input_segments:
          chunk["reset_BS"][row, at] |= numbers % self._input_segments == 0
    return chunk


def empty_batch(lanes: int, segments: int, segment_length: int) -> Batch:
  """A batch that is all padding, with the shapes and types of `TrainLanes.batch`."""
  shape = (lanes, segments * segment_length)
  return {
    "tokens_BT": np.zeros(shape, np.int32),
    "targets_BT": np.zeros(shape, np.int32),
    "mask_BT": np.zeros(shape, bool),
    "reset_BS": np.zeros((lanes, segments), bool),
  }


def _fill(
  batch: Batch,
  row: int,
  piece: Piece,
  documents: TokenDocuments,
  n: int,
  bos: int,
  eos: int | None,
  read: bool = True,
) -> None:
  """Writes one piece of a document of `n` tokens into a row. `eos`, if given, is the last target.

  Without `read` it sets the mask and the resets only.
  """
  length = batch["tokens_BT"].shape[1] // batch["reset_BS"].shape[1]
  start = piece.first * length
  stop = min(start + piece.segments * length, n if eos is None else n + 1)
  at = slice(piece.slot * length, piece.slot * length + stop - start)
  batch["mask_BT"][row, at] = True
  batch["reset_BS"][row, piece.slot : piece.slot + piece.segments] = False
  batch["reset_BS"][row, piece.slot] = piece.first == 0
  if not read:
    return
  # The document as [bos, t_0 .. t_{n-1}, eos]: prediction p has input p and target p+1.
  ids = documents.read(piece.document, max(start - 1, 0), min(stop, n))
  head = [bos] if start == 0 else []
  tail = [eos] if eos is not None and stop == n + 1 else []
  ids = np.concatenate([head, ids, tail]).astype(np.int32)
  batch["tokens_BT"][row, at] = ids[:-1]
  batch["targets_BT"][row, at] = ids[1:]
