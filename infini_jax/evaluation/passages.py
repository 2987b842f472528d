"""Where in a text the memory helped: passages and words, by the loss of each token.

What a token saved is its loss with the memory held empty, minus its loss with the memory, in nats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from infini_jax.data import Tokenizer

KEPT = 2_000_000  # tokens of an evaluation, at most, whose losses are kept one by one
WIDTH = 96  # tokens of a passage
SHOWN = 24  # passages that were helped most
HARMED = 6  # passages that were harmed most
OF_ONE = 4  # passages of one document, at most, of each kind
CONTEXT = 8  # tokens before a piece of text: it may be written differently after others


class Losses(NamedTuple):
  """What some documents were read as: by their numbers, names, ids and nats of each token."""

  names: dict[int, str]
  ids: dict[int, np.ndarray]
  nats: dict[int, np.ndarray]
  tokenizer: Tokenizer


class Word(NamedTuple):
  """A word of a passage, with what stands between it and the next.

  Attributes:
    text: with the white space before it.
    start, stop: its tokens in the document.
    memory, empty: nats of the word, with the memory and with it held empty.
    before: how often it stands in the segments before its own.
    distance: tokens since the last of those; 0: there is none.
  """

  text: str
  start: int
  stop: int
  memory: float
  empty: float
  before: int
  distance: int

  @property
  def saved(self) -> float:
    """In nats."""
    return self.empty - self.memory


class Passage(NamedTuple):
  """Some tokens of a document."""

  document: int
  start: int
  stop: int
  saved: float  # nats


def passages(memory: Losses, empty: Losses) -> tuple[list[Passage], list[Passage]]:
  """Those that the memory helped most, and those that it harmed most; none overlap."""
  found = []
  for document, nats in memory.nats.items():
    saved = empty.nats[document].astype(np.float64) - nats
    sums = np.concatenate([[0.0], np.cumsum(saved)])
    for start in range(0, max(1, len(saved) - WIDTH // 2), WIDTH // 2):
      stop = min(start + WIDTH, len(saved))
      found.append(Passage(document, start, stop, float(sums[stop] - sums[start])))
  found.sort(key=lambda p: -p.saved)
  helped = _apart((p for p in found if p.saved > 0), SHOWN)
  return helped, _apart((p for p in reversed(found) if p.saved < 0), HARMED)


def words(passage: Passage, memory: Losses, empty: Losses, segment_length: int) -> list[Word]:
  """The words of a passage, in order."""
  d = passage.document
  ids, with_it, without = memory.ids[d], memory.nats[d], empty.nats[d]
  made = []
  for text, start, stop in _words(memory.tokenizer, ids, passage.start, passage.stop):
    seen = ids[: start // segment_length * segment_length]
    places = _occurrences(seen, ids[start:stop]) if text.strip() else np.zeros(0, int)
    distance = int(start - places[-1]) if len(places) else 0
    cost, cost_empty = (float(x[start:stop].sum()) for x in (with_it, without))
    made.append(Word(text, start, stop, cost, cost_empty, len(places), distance))
  return made


def shares_seen(memory: Losses, empty: Losses, segment_length: int) -> tuple[float, float]:
  """Of the tokens that saved over 1 nat, and of all behind a first segment, the share whose like
  stands in an earlier segment of the document; NaN of none."""
  seen, helped = [], []
  for document, ids in memory.ids.items():
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    begins = np.arange(len(ids)) // segment_length * segment_length
    behind = begins > 0
    seen.append((first[place] < begins)[behind])
    helped.append((empty.nats[document] - memory.nats[document] > 1)[behind])
  all_seen, all_helped = np.concatenate(seen), np.concatenate(helped)
  mean = lambda x: float(x.mean()) if len(x) else float("nan")
  return mean(all_seen[all_helped]), mean(all_seen)


def _apart(some: Iterator[Passage], most: int) -> list[Passage]:
  """The first of them that do not overlap, and few of each document."""
  chosen: list[Passage] = []
  for one in some:
    same = [p for p in chosen if p.document == one.document]
    if len(same) < OF_ONE and all(one.stop <= p.start or p.stop <= one.start for p in same):
      chosen.append(one)
    if len(chosen) == most:
      break
  return chosen


def _words(
  tokenizer: Tokenizer, ids: np.ndarray, start: int, stop: int
) -> Iterator[tuple[str, int, int]]:
  """Text and tokens of each word: pieces of whole characters, joined up to the next white space."""
  text, begin = "", start
  for piece, first, after in _pieces(tokenizer, ids, start, stop):
    if text.strip() and piece[:1].isspace():
      yield text, begin, first
      text, begin = "", first
    text += piece
    stop = after
  if text:
    yield text, begin, stop


def _pieces(
  tokenizer: Tokenizer, ids: np.ndarray, start: int, stop: int
) -> Iterator[tuple[str, int, int]]:
  begin = max(0, start - CONTEXT)
  before, first = tokenizer.decode(ids[begin:start]), start
  for i in range(start, stop):
    text = tokenizer.decode(ids[begin : i + 1])
    if text.endswith("\ufffd") and i + 1 < stop:
      continue  # inside of a character
    yield text[len(before) :], first, i + 1
    before, first = text, i + 1


def _occurrences(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Where some tokens stand in others, one after the other."""
  n = len(wanted)
  if len(ids) < n:
    return np.zeros(0, int)
  same = np.ones(len(ids) - n + 1, bool)
  for i, token in enumerate(wanted):
    same &= ids[i : len(ids) - n + 1 + i] == token
  return np.flatnonzero(same)
