"""Summaries: pairs of a document and its summary, as in BookSum (arXiv 2105.08209).

A pair is a conversation of one question and one answer in a fixed form, [bos, document, mark,
summary, eos]; the mark is a text before the summary. It is read from a store, token by token.
"""

import functools

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.store.store import Store
from infini_jax.tasks.example import overlaps

MARK = "\n\nSummary:\n"
KIND = " pairs"  # the end of the fingerprint


def older(fingerprint: str) -> str:
  """The fingerprint of the same pairs where every chunk held one of them; empty for no pairs."""
  return fingerprint.removesuffix(KIND) + " summaries" if fingerprint.endswith(KIND) else ""


class Pairs:
  """A store whose documents have summaries.

  Attributes:
    end: the id of the token that ends a summary.

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
    self.end = self.tokenizer.eos
    self.fingerprint = f"{store.fingerprint}{KIND}"
    self.mark = self.tokenizer.encode(MARK)

  def split(self, name: str, document: str = "", max_tokens: int = 0) -> "Told":
    """The pairs of a split, or that of one document, to evaluate.

    Args:
      name: the split.
      document: the name of the only document; empty: all.
      max_tokens: the most tokens of a document; what follows is cut. 0: all.

    Raises:
      InputError: no document of the split has a summary.
    """
    return Told(self, name, document, max_tokens=max_tokens)

  def training(self, config: Config) -> "Told":
    """The pairs to train on: whole with `data.carry_state`, else cut so that a chunk holds each.

    Raises:
      InputError: a chunk is too short, or no training document has a summary.
    """
    room = 0 if config.data.carry_state else config.data.segments * config.model.segment_length
    if 0 < room < 4 * len(self.mark):
      raise InputError(
        f"config.data.segments={config.data.segments} of config.model.segment_length="
        f"{config.model.segment_length} tokens hold no document with its summary; raise "
        f"config.data.segments, or set config.data.carry_state=True"
      )
    return Told(self, "train", room=room, context_weight=config.task.context_weight)


class Told:
  """The pairs of a split, `WithAnswers`; documents without a summary are left out.

  The loss weight of a summary is 1 in total, for every length; that of what is before it is
  `context_weight`.

  Args:
    pairs: the pairs of all splits.
    split: the split.
    document: the name of the only document; empty: all.
    max_tokens: the most tokens of a document; 0: all.
    room: the most tokens of a pair; 0: all. A document is cut at its end. A summary is cut after
      half of the room, and then has no eos.
    context_weight: the loss weight of a document with its mark.

  Attributes:
    tokens: (pairs,) the predictions of each.
    first_X: (pairs,) bos.
    read_X: (pairs,) the tokens of each document that are read.
    cut_X: (pairs,) whether these are not all.

  Raises:
    InputError: no document of the split has a summary.
  """

  def __init__(
    self,
    pairs: Pairs,
    split: str,
    document: str = "",
    max_tokens: int = 0,
    room: int = 0,
    context_weight: float = 0.0,
  ):
    self._documents = pairs.store.split(split, document)
    self._summaries = pairs.store.summaries(split, document)
    self._mark, self._eos, self._context = pairs.mark, pairs.end, context_weight
    self._told = np.flatnonzero(self._summaries.tokens)
    if not len(self._told):
      raise InputError(
        f"corpus {pairs.store.source!r}: no summary for {document or split}; add some, or choose "
        f"another (while training: another corpus, or set config.train.eval_every=0)"
      )
    whole_X, summary_X = self._documents.tokens[self._told], self._summaries.tokens[self._told] + 1
    self.read_X = np.minimum(whole_X, max_tokens) if max_tokens else whole_X
    if room:
      summary_X = np.minimum(summary_X, room // 2 + 1)
      self.read_X = np.minimum(self.read_X, room - len(self._mark) - summary_X)
    self.cut_X = self.read_X < whole_X
    self._summary_X, self._start_X = summary_X, self.read_X + len(self._mark)
    self.tokens = self._start_X + summary_X
    self.first_X = np.full(len(self._told), pairs.tokenizer.bos, np.int32)
    self.own = slice(1, -len(self._mark))  # of bos, document, mark

  def __len__(self) -> int:
    return len(self._told)

  @functools.cached_property
  def names(self) -> list[str]:
    """The names of the documents."""
    return [self._documents.names[pair] for pair in self._told.tolist()]

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Targets `start` to `stop` of a pair, (stop - start,) int32."""
    pair, mark = int(self._told[document]), len(self._mark)
    summary = int(self._summaries.tokens[pair])
    read = (
      lambda a, b: self._documents.read(pair, a, b),
      lambda a, b: self._mark[a:b],
      lambda a, b: self._summaries.read(pair, a, b),
      lambda a, b: [self._eos],
    )
    found = (
      read[i](a, b)
      for i, a, b in overlaps(start, stop, (int(self.read_X[document]), mark, summary, 1))
    )
    return np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int32)

  def said(self, document: int, start: int, stop: int) -> np.ndarray:
    """Which of those targets are of the summary, bool; fewer at the end."""
    return np.arange(start, min(stop, self.tokens[document])) >= self._start_X[document]

  def weights(self, document: int, start: int, stop: int) -> np.ndarray:
    """The loss weight of each of those targets, float32."""
    context = self._context / self._start_X[document]
    said = self.said(document, start, stop)
    return np.where(said, 1 / self._summary_X[document], context).astype(np.float32)

  def last(self, document: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before a summary, with bos; and those of the summary with its end."""
    ids = self.read(document, 0, int(self.tokens[document]))
    start = int(self._start_X[document])
    return np.append(self.first_X[document], ids[:start]), ids[start:]
