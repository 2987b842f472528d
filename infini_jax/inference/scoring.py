"""How likely texts are after what a session has read: the log-probability of every token.

A text is read chunk by chunk from a copy of the state, as long as it is. Several texts are lanes of
one batch, and what they have in common, the text of the session, is read once.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from infini_jax.config import InputError
from infini_jax.inference.engine import SCORED
from infini_jax.inference.lane import Lane
from infini_jax.inference.saved import OpenedRun
from infini_jax.inference.texts import check_tokens, tokens_of
from infini_jax.models.states import held_L

LANES = 8  # the most texts that are read side by side
LOG_2 = math.log(2)


class How(NamedTuple):
  """How texts are scored.

  Attributes:
    empty: the memory is held empty.
    marked: bos and eos may be among the tokens.
    lanes: the most texts side by side.
  """

  empty: bool = False
  marked: bool = False
  lanes: int = LANES


class Score(NamedTuple):
  """How likely a text is.

  Attributes:
    tokens: how many were scored.
    log_prob: the logarithm of the probability of all of them, in nats, at most 0.
    likeliest: whether each of them is likelier than any other, as greedy decoding would write it.
    bytes: of the text in UTF-8; None if tokens were given.
    ids: (tokens,) int32.
    log_probs: (tokens,) float32, of each token.
  """

  tokens: int
  log_prob: float
  likeliest: bool
  bytes: int | None
  ids: np.ndarray
  log_probs: np.ndarray

  @property
  def bits_per_byte(self) -> float | None:
    """Comparable between tokenizers; None without a text."""
    return -self.log_prob / LOG_2 / self.bytes if self.bytes else None

  @property
  def perplexity(self) -> float:
    """Of a token; NaN without tokens."""
    with np.errstate(over="ignore"):
      return float(np.exp(-self.log_prob / self.tokens)) if self.tokens else math.nan


class Block(NamedTuple):
  """Consecutive tokens of one of the texts, scored; arrays of (n,)."""

  text: int
  ids: np.ndarray
  log_probs: np.ndarray
  right: np.ndarray  # bool, whether a token is likelier than any other


class Start(NamedTuple):
  """Where texts begin: a state, and its lanes. Each lane has one unread token."""

  stream: Any
  lanes: list[Lane]


class Text(NamedTuple):
  """A text to score.

  Attributes:
    lane: the lane of the session whose text it follows.
    readable: what it is, as for `Session.read`.
  """

  lane: int
  readable: Any


def score(run: OpenedRun, stream: Any, lanes: Sequence[Lane], readable: Any, how: How) -> Any:
  """What `Session.score` returns."""
  if len(lanes) == 1:
    readable = [readable]
  elif not isinstance(readable, list | tuple) or len(readable) != len(lanes):
    raise InputError(f"a session of {len(lanes)} lanes scores a list of {len(lanes)} texts")
  texts = [
    Text(i, x) for i, one in enumerate(readable) for x in (one if is_several(one) else [one])
  ]
  scores = iter(each_of(run, stream, lanes, texts, how))
  found = [[next(scores) for _ in one] if is_several(one) else next(scores) for one in readable]
  return found[0] if len(lanes) == 1 else found


def is_several(readable: Any) -> bool:
  """Whether this is a list of texts, and not the tokens of one."""
  one = lambda x: isinstance(x, str | list | tuple) or hasattr(x, "__fspath__")
  return isinstance(readable, list | tuple) and bool(readable) and all(map(one, readable))


def each_of(
  run: OpenedRun, stream: Any, lanes: Sequence[Lane], texts: Sequence[Text], how: How
) -> list[Score]:
  """The scores of texts, `how.lanes` of them at a time.

  Raises:
    InputError: as `Session.score`.
  """
  start, found = begun(run, stream, lanes, how.empty), list[Score]()
  for first in range(0, len(texts), how.lanes):
    some = texts[first : first + how.lanes]
    sums = [_Sum() for _ in some]
    readables = [
      text._replace(readable=tokens_of(text.readable, run.tokenizer, one.said))
      for text, one in zip(some, sums, strict=True)
    ]
    for block in blocks(run, start, readables, how):
      sums[block.text].add(block)
    found += [one.score() for one in sums]
  return found


class _Sum:
  """What was scored of one text."""

  def __init__(self) -> None:
    self._blocks: list[Block] = []
    self._bytes: int | None = None

  def said(self, size: int) -> None:
    self._bytes = (self._bytes or 0) + size

  def add(self, block: Block) -> None:
    self._blocks.append(block)

  def score(self) -> Score:
    ids = np.concatenate([np.zeros(0, np.int32), *(block.ids for block in self._blocks)])
    own = np.concatenate([np.zeros(0, np.float32), *(block.log_probs for block in self._blocks)])
    likeliest = all(bool(block.right.all()) for block in self._blocks)
    return Score(len(ids), float(own.sum(dtype=np.float64)), likeliest, self._bytes, ids, own)


def blocks(run: OpenedRun, start: Start, texts: Sequence[Text], how: How) -> Iterator[Block]:
  """The tokens of some texts with their log-probabilities, as they are read.

  At most a chunk of each text is in memory.

  Args:
    run: the model.
    start: where they begin.
    texts: the texts.
    how: how they are scored.

  Raises:
    InputError: as `Session.score`.
  """
  engine, T, N = run.engine, run.engine.chunk, run.engine.segment
  readables = [tokens_of(text.readable, run.tokenizer) for text in texts]
  # A power of two, so that few programs are compiled; the last lanes have no text.
  from_B = [text.lane for text in texts]
  from_B += from_B[:1] * ((1 << (len(texts) - 1).bit_length()) - len(texts))
  stream, own = engine.pick(start.stream, np.array(from_B)), [start.lanes[i].copy() for i in from_B]
  marked, vocabulary = how.marked, engine.config.model.vocab_size
  while True:
    for lane, its in zip(own, readables, strict=False):
      ids = islice(its, max(0, T + 1 - len(lane.unread)))
      lane.take(check_tokens(ids, vocabulary, run.tokenizer, begins=False, marked=marked))
    going = [i for i, lane in enumerate(own) if len(lane.unread) > 1]
    if not going:
      return
    # Texts that are near their end, or not at a segment border, go first; then whole chunks of all
    # others are left. The results of lanes that have ended are not used.
    short = [i for i in going if len(own[i].unread) <= T or own[i].read % N]
    room = {i: min(len(own[i].unread) - 1, N - own[i].read % N) for i in short}
    sizes = [room.get(i, 0) if short else T for i in range(len(own))]
    targets = [lane.unread[1 : 1 + size] for lane, size in zip(own, sizes, strict=True)]
    if how.empty:
      stream = engine.forget(stream, np.array([lane.read % N == 0 for lane in own]))
    pieces = [lane.give(size, N) for lane, size in zip(own, sizes, strict=True)]
    if short:
      found, stream = engine.score_open(stream, pieces, targets)
    else:
      padded = [np.zeros((len(own), T), np.int32) for _ in range(2)]
      for rows, given in zip(padded, (pieces, targets), strict=True):
        for i in going:
          rows[i] = given[i]
      found, stream = engine.score(stream, padded[0], padded[1], how.empty)
    nll_BT, right_BT = map(np.asarray, found)
    for i in short or going:
      n = sizes[i]
      yield Block(i, np.array(targets[i], np.int32), -nll_BT[i, :n], right_BT[i, :n])


def begun(run: OpenedRun, stream: Any, lanes: Sequence[Lane], empty: bool) -> Start:
  """Where texts begin that follow those of a session: their last tokens alone are unread.

  Args:
    run: the model.
    stream: the state of the session; it stays valid.
    lanes: its lanes, which stay as they are.
    empty: the memory is held empty.

  Raises:
    InputError: nothing was read in a lane; the memory cannot be held empty.
  """
  engine, own, N = run.engine, [lane.copy() for lane in lanes], run.engine.segment
  if not all(lane.unread for lane in own):
    raise InputError("nothing to score from: read at least one token before")
  if empty:
    _check_empty(run, own)
    if held_L(engine.config.model) is None:
      stream = engine.start(len(own))
      for lane in own:
        lane.unread, lane.read, lane.open = [*(lane.open or ()), *lane.unread], 0, []
  stream = engine.pick(stream, np.arange(len(own)))
  while any(len(lane.unread) > 1 for lane in own):
    if empty:
      stream = engine.forget(stream, np.array([lane.read % N == 0 for lane in own]))
    pieces = [lane.give(min(len(lane.unread) - 1, N - lane.read % N), N) for lane in own]
    stream = engine.extend(stream, pieces, SCORED)[1]
  return Start(stream, own)


def _check_empty(run: OpenedRun, lanes: Sequence[Lane]) -> None:
  """Raises InputError if the memory cannot be held empty."""
  model = run.engine.config.model
  if not model.memory.remembers:
    raise InputError(
      f"config.{model.setting} has no memory to hold empty; leave empty=True (--empty) out"
    )
  for lane in lanes:
    if held_L(model) is not None and lane.read:
      raise InputError(
        f"empty=True (--empty) after a text, with config.{model.setting}: full attention has read "
        f"it with the memory; score the whole text from its beginning"
      )
    if lane.open is None:
      raise InputError(
        "empty=True (--empty) from a saved state: its file does not hold the tokens of the open "
        "segment; read the text again, or leave it out"
      )
