"""Where in a text the memory helped: passages and words, by the loss of each token.

The saving of a token is its loss with the memory held empty, minus its loss with the memory, in
nats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from infini_jax.data import Tokenizer

KEPT = 2_000_000  # the most tokens of an evaluation whose losses are kept one by one
WIDTH = 96  # tokens of a passage
SHOWN = 24  # the most passages that were helped
HARMED = 6  # the most passages that were harmed
OF_ONE = 4  # the most passages of one document, of each kind
CONTEXT = 8  # tokens decoded before a piece, because its text can depend on them


class Losses(NamedTuple):
  """The losses of some documents: by document number, the name, and ids and nats of the tokens."""

  names: dict[int, str]
  ids: dict[int, np.ndarray]
  nats: dict[int, np.ndarray]
  tokenizer: Tokenizer


class Word(NamedTuple):
  """A word of a passage.

  Attributes:
    text: the word, with the white space before it.
    start, stop: the range of its tokens in the document.
    memory, empty: nats of the word, with the memory and with the memory held empty.
    before: how many times the word occurs in the segments before its own.
    distance: tokens since the last of these occurrences; 0 if there is none.
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
    """The saving of the word in nats."""
    return self.empty - self.memory


class Passage(NamedTuple):
  """Some tokens of a document."""

  document: int
  start: int
  stop: int
  saved: float  # nats


def passages(memory: Losses, empty: Losses) -> tuple[list[Passage], list[Passage]]:
  """The passages that the memory helped most, and those that it harmed most, without overlaps."""
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
  """The share of tokens whose id also occurs in an earlier segment of the document.

  Two shares: of the tokens that saved more than 1 nat, and of all tokens after a first segment. NaN
  if there are no such tokens.
  """
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
  """The first passages that do not overlap, with at most `OF_ONE` of each document."""
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
  """The text and token range of each word: pieces of whole characters, up to white space."""
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
      continue  # inside a character
    yield text[len(before) :], first, i + 1
    before, first = text, i + 1


def _occurrences(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The positions at which the sequence `wanted` occurs in `ids`."""
  n = len(wanted)
  if len(ids) < n:
    return np.zeros(0, int)
  same = np.ones(len(ids) - n + 1, bool)
  for i, token in enumerate(wanted):
    same &= ids[i : len(ids) - n + 1 + i] == token
  return np.flatnonzero(same)
