"""A job: the reading and writing of one request, in its own session."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from infini_jax.inference import Piece, Session
from infini_jax.inference.batch import Drawn, catch_up
from infini_jax.inference.chat import Answer, Asked
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.writing import Writer


class Progress(NamedTuple):
  """The request has read so many tokens so far.

  Attributes:
    tokens: their number.
    share: of the text that was read, where its size is known, else 0.
    used: of the memory, now and then: see `serve.memory`.
  """

  tokens: int
  share: float = 0.0
  used: Any = None


class Written(NamedTuple):
  """The next token of the text."""

  piece: Piece
  drawn: Drawn


class Done(NamedTuple):
  """The end of a request; `result` is what `Job.close` returned."""

  result: Any


class Failed(NamedTuple):
  """The end of a request that failed."""

  error: BaseException


Event = Progress | Written | Done | Failed


class Text(NamedTuple):
  """The tokens to read.

  Attributes:
    tokens: its tokens.
    asked: the conversation that they are of.
    share: of them, what was taken so far.
  """

  tokens: Iterator[int]
  asked: Asked | None = None
  share: Callable[[], float] = lambda: 0.0


@dataclasses.dataclass
class Wish:
  """The tokens to write.

  Attributes:
    tokens: the most tokens.
    how: how they are drawn.
    seed: of the draws.
    stop: texts that end it.
    ends: tokens that end it, in addition to eos.
    likeliest: whether the likeliest tokens are wanted.
  """

  tokens: int
  how: Sampling
  seed: int
  stop: tuple[str, ...] = ()
  ends: tuple[int, ...] = ()
  likeliest: bool = False


class Job:
  """Reads tokens, then writes.

  Args:
    session: of one lane; no other job uses it.
    text: what it reads.
    wish: what is written then; None: nothing.
    emit: takes each event, in any thread.
    close: called once at the end, with the session and the error or None; it may write to the disk.
      Its result comes with `Done`.
    owner: the user whose turn it is when the job begins.
    seconds: after this time it fails.
  """

  def __init__(
    self,
    session: Session,
    text: Text,
    wish: Wish | None,
    emit: Callable[[Event], None],
    close: Callable[[Session, BaseException | None], Any],
    *,
    owner: str = "",
    seconds: float = float("inf"),
  ):
    self.session, self.wish, self.emit, self.owner = session, wish, emit, owner
    self.ends = time.monotonic() + seconds
    self.cancelled, self._share = False, text.share
    self._readable: Iterator[int] | None = text.tokens
    self._close, self._asked, self._read = close, text.asked, 0
    self._left = wish.tokens if wish else 0
    self._answer = Answer(text.asked, session.tokenizer) if text.asked else None
    self._writer: Writer | None = None

  def read_on(self) -> bool:
    """Reads with one or a few calls of the model; returns whether there is more to read."""
    if self._readable is None:
      return self._left > 0 and catch_up(self.session)
    T = self.session.run.engine.chunk
    ids = np.fromiter(islice(self._readable, T), np.int64)
    if len(ids):
      self.session.read([ids], marked=self._asked is not None)
      self._read += len(ids)
      self.emit(Progress(self._read, self._share()))
    if len(ids) == T:
      return True
    self._readable = None
    if self._asked is not None:
      self.session.told = self._asked.open()
    return self._left > 0 and max(self.session.waiting) > 1

  @property
  def writes(self) -> bool:
    """Whether tokens are left to write."""
    return self._left > 0

  def take(self, drawn: Drawn) -> bool:
    """Takes a token that was drawn; returns whether more are to be written."""
    assert self.wish is not None
    if self._writer is None:
      before = [*self.session.recent[0]][:-1]
      self._writer = Writer(self.session.tokenizer, before, self.wish.stop, self.wish.ends)
    self._left -= 1
    piece = Piece(0, drawn.token, *self._writer.push(drawn.token, last=not self._left))
    if self._answer is not None:
      self._answer.add(piece)
    self._left = 0 if piece.end else self._left
    self.emit(Written(piece, drawn))
    return self._left > 0

  def settle(self, error: BaseException | None) -> None:
    """Ends the job and sends its last event."""
    try:
      if error is None and self._answer is not None:
        self.session.told = self._answer.told(self.session.positions[0])
      result = self._close(self.session, error)
    except Exception as failed:
      error, result = error or failed, None
    self.emit(Done(result) if error is None else Failed(error))
