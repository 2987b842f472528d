"""`Session`: a model that has read something, can read more, write, be copied and be kept."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import InputError
from infini_jax.data import Tokenizer
from infini_jax.inference import saved
from infini_jax.inference.arguments import seeds, short, stops, whole
from infini_jax.inference.lane import Lane
from infini_jax.inference.sampling import NOTHING, RECENT, Sampling
from infini_jax.inference.texts import Source, tokens_of
from infini_jax.inference.writing import Piece, Writer
from infini_jax.paths import local


class Session:
  """Some texts side by side (`lanes`, one by default), each opened by the document mark.

  Tokens go through the model in whole chunks; the last of them wait until there are more, or until
  something is written. So the pieces in which one text is read never matter, to the last bit (in
  several lanes, but for rounding). What is written belongs to the text.

  A lane holds one document. Where the model has written the mark that ends it, nothing can follow,
  as nothing does in training: `reset` begins another, and a `fork` made before goes on from there.
  """

  def __init__(self, run: saved.Run, lanes: int = 1, begin: bool = True):
    """A new session of an opened model: see `load`. `begin=False` leaves the mark out."""
    self.run = run
    self._lanes = [Lane() for _ in range(whole("lanes", lanes, least=1))]
    self._stream = run.engine.start(self.lanes)
    for lane in self._lanes:
      lane.take([run.tokenizer.bos] * bool(begin))

  @classmethod
  def load(
    cls,
    path: str | Path,
    *,
    lanes: int = 1,
    step: int | None = None,
    model: "str | Path | Session | None" = None,
  ) -> "Session":
    """Opens a run, or a state that `save` wrote.

    Args:
      path: the workdir of a run (a converted model is one, too), or the file of a state.
      lanes: of a new session; a state has its own, and another number is refused.
      step: which checkpoint; by default a run's newest, and for a state the one it was made with.
      model: of a state: the run that it belongs to, where that has moved; or a session, to share
        its parameters.

    Raises:
      InputError: no such run or checkpoint; a state that is damaged, or of another model.
    """
    path = _path("path", path)
    lanes = whole("lanes", lanes, least=1)
    step = None if step is None else whole("step", step)
    if path.is_dir():
      if model is not None:
        raise InputError(f"{path}: a run needs no model=; give a state, or leave it out")
      return cls(saved.open_run(path, step), lanes)
    if not path.exists():
      raise InputError(f"{path}: no run or state here; give a run's folder, or what `save` wrote")
    opened = model.run if isinstance(model, Session) else model
    if opened is not None and not isinstance(opened, saved.Run):
      opened = _path("model", opened)
    run, stream, texts = saved.load(path, opened, step)
    if lanes not in (1, len(texts)):
      raise InputError(f"{path}: a state of {len(texts)} lanes, not {lanes}; leave lanes= out")
    return cls._of(run, stream, texts)

  @classmethod
  def _of(cls, run: saved.Run, stream: Any, lanes: list[Lane]) -> "Session":
    session = object.__new__(cls)
    session.run, session._stream, session._lanes = run, stream, lanes
    return session

  def save(self, path: str | Path) -> None:
    """Keeps the state in one file, whole or not at all; it goes on from there to the same tokens.

    Raises:
      InputError: the file cannot be written.
    """
    saved.save(_path("path", path), self.run, self.run.engine.together(self._stream), self._lanes)

  def fork(self) -> "Session":
    """A copy that goes its own way; the parameters are shared."""
    stream = jax.tree.map(jnp.copy, self._stream)
    return self._of(self.run, stream, [lane.copy() for lane in self._lanes])

  def reset(self, lanes: int | Sequence[int] | None = None) -> None:
    """Begins a new document, as a new session does: in all lanes, or in those of these numbers.

    Raises:
      InputError: there is no such lane.
    """
    some = range(self.lanes) if lanes is None else np.atleast_1d(np.asarray(lanes)).tolist()
    chosen = {whole("lane", i, most=self.lanes - 1) for i in some}
    with _whole():
      if len(chosen) == self.lanes:
        self._stream = self.run.engine.start(self.lanes)
      elif chosen:
        which_B = np.isin(np.arange(self.lanes), list(chosen))
        self._stream = self.run.engine.renew(self._stream, which_B)
      for i in chosen:
        self._lanes[i] = Lane()
        self._lanes[i].take([self.tokenizer.bos])

  @property
  def lanes(self) -> int:
    """Texts side by side."""
    return len(self._lanes)

  @property
  def tokenizer(self) -> Tokenizer:
    """The model's own."""
    return self.run.tokenizer

  @property
  def positions(self) -> list[int]:
    """Tokens of each lane's text so far: the mark, what was read, what was written."""
    return [lane.position for lane in self._lanes]

  @property
  def waiting(self) -> list[int]:
    """Tokens of each lane that wait for a whole chunk, or for something to be written."""
    return [len(lane.unread) for lane in self._lanes]

  @property
  def ended(self) -> list[bool]:
    """Of each lane, whether the model has ended its document: it reads and writes nothing more."""
    return [lane.ended(self.tokenizer.eos) for lane in self._lanes]

  @property
  def recent(self) -> list[list[int]]:
    """The last tokens of each lane's text, 256 at most."""
    return [list(lane.recent) for lane in self._lanes]

  @property
  def state_bytes(self) -> int:
    """Of the state on the device."""
    return sum(x.nbytes for x in jax.tree.leaves(self._stream))

  def wait(self) -> None:
    """Until the device has done what was asked of it: before a clock is read."""
    jax.block_until_ready(self._stream)

  def read(
    self, source: Source | Sequence[Source], advance: Callable[[int], None] | None = None
  ) -> int:
    """Reads more text, which may be endless: never more than a chunk of it is held.

    Args:
      source: a text, the Path of a file of text, an opened file or stream of text, or tokens (any
        iterable of numbers or of arrays). With several lanes, a list of one such for each.
      advance: called with the tokens taken so far in this call, of all lanes.

    Returns:
      The number of tokens, of all lanes.

    Raises:
      InputError: a document that the model has ended; what cannot be read; the name of a file as a
        text; numbers that are no tokens, or the mark of a document. A chunk before may be lost
        then, as after a Ctrl-C; what the session has read stands.
    """
    sources: Any = [source] if self.lanes == 1 else source
    if not isinstance(sources, list | tuple) or len(sources) != self.lanes:
      raise InputError(f"a session of {self.lanes} lanes reads a list of {self.lanes} texts")
    tokens = [tokens_of(each, self.tokenizer) for each in sources]
    for i, (its, ended) in enumerate(zip(tokens, self.ended, strict=True)):
      if ended and next(its, None) is not None:
        raise InputError(self._over(i))
    T, N = self.run.engine.chunk, self.run.engine.segment
    taken = 0
    while True:
      for lane, its in zip(self._lanes, tokens, strict=True):
        before = lane.position
        lane.take(self._known(islice(its, max(0, T + 1 - len(lane.unread))), begins=not before))
        taken += lane.position - before
      if advance is not None:
        advance(taken)
      long = [i for i, lane in enumerate(self._lanes) if len(lane.unread) > T]
      if not long:
        return taken
      with _whole():
        if len(long) == self.lanes and all(lane.read % N == 0 for lane in self._lanes):
          tokens_BT = np.array([lane.give(T) for lane in self._lanes], np.int32)
          self._stream = self.run.engine.read(self._stream, tokens_BT)
        else:
          self._feed(long)

  def generate(
    self,
    tokens: int = 200,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | Sequence[int] = 0,
  ) -> Iterator[Piece]:
    """Writes on, in every lane until it ends: one `Piece` for each token, as it is written.

    What is drawn depends on the text, the seed and the position alone. The iterator may be left at
    any time: the text ends with the last token drawn. A lane that has ended writes nothing.

    Args:
      tokens: to be written in each lane, at most.
      temperature: 0 is greedy.
      top_p: only the likeliest tokens that together reach this share are drawn from.
      top_k: only so many; 0: all.
      repetition_penalty: above 1, tokens that stand among the last 256 become less likely.
      stop: texts of which each ends the lane; they are not shown, but are part of the text.
      seed: of the draws, from 0 to 2^32 - 1: one for each lane, or one, and lane i has `seed + i`.

    Raises:
      InputError: a choice of the wrong kind or out of its range, nothing to go on from, or nothing
        but documents that the model has ended.
    """
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty)
    tokens, seeds_B, stop = whole("tokens", tokens), seeds(seed, self.lanes), stops(stop)
    if not all(self.positions):
      raise InputError("nothing to go on from: read at least one token in every lane")
    if all(self.ended):
      raise InputError(self._over(0))
    writers = [Writer(self.tokenizer, lane.recent, stop) for lane in self._lanes]
    return self._write(tokens, sampling, writers, seeds_B)

  def _write(
    self, tokens: int, sampling: Sampling, writers: list[Writer], seeds_B: np.ndarray
  ) -> Iterator[Piece]:
    going = list(range(self.lanes))
    for left in reversed(range(tokens)):
      going = [i for i in going if not self.ended[i]]
      if not going:
        return
      with _whole():
        token_B = self._next(going, sampling, seeds_B).tolist()
        drawn = [(i, token_B[i]) for i in going]
        for i, token in drawn:
          self._lanes[i].take([token])
      pieces = [Piece(i, token, *writers[i].push(token, last=not left)) for i, token in drawn]
      yield from pieces
      going = [piece.lane for piece in pieces if not piece.end]

  def _next(self, going: list[int], sampling: Sampling, seeds_B: np.ndarray) -> np.ndarray:
    """Draws the next token of these lanes, once the model has read all of them."""
    last_BV: Any = None
    while behind := [i for i in going if self._lanes[i].unread]:
      logits_BV = self._feed(behind)
      here_B1 = np.isin(np.arange(self.lanes), behind)[:, None]
      last_BV = logits_BV if last_BV is None else jnp.where(here_B1, logits_BV, last_BV)
    positions_B = np.array([lane.read % 2**32 for lane in self._lanes], np.uint32)
    recent_BW = np.full((self.lanes, RECENT), NOTHING, np.int32)
    for row, lane in zip(recent_BW, self._lanes, strict=True):
      row[RECENT - len(lane.recent) :] = lane.recent
    return self.run.engine.draw(last_BV, seeds_B, positions_B, recent_BW, sampling)

  def _feed(self, lanes: list[int]) -> jax.Array:
    """These lanes' next tokens, to the end of their open segments; the logits after them."""
    N = self.run.engine.segment
    pieces: list[list[int]] = [[] for _ in self._lanes]
    for i in lanes:
      pieces[i] = self._lanes[i].give(N - self._lanes[i].read % N)
    logits_BV, self._stream = self.run.engine.extend(self._stream, pieces)
    return logits_BV

  def _known(self, tokens: Iterator[int], begins: bool) -> list[int]:
    """Raises InputError unless all are tokens of this model, inside of one document."""
    ids, V = list(tokens), self.run.engine.config.model.vocab_size
    for token in (min(ids, default=0), max(ids, default=0)):
      if not 0 <= token < V:
        raise InputError(f"token {token}: the model has 0 to {V - 1}; use its own tokenizer")
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    if {bos, eos} & set(ids[1:] if begins and ids[:1] == [bos] else ids):
      raise InputError(
        f"a document's mark among tokens ({bos} begins one, {eos} ends it): a session reads the "
        f"first itself; leave it out, and begin another document by reset()"
      )
    return ids

  def _over(self, lane: int) -> str:
    which = f" of lane {lane}" if self.lanes > 1 else ""
    return (
      f"the model has ended the document{which}, so nothing follows it: reset() begins another, "
      f"and a fork() made before goes on from there"
    )


def _path(name: str, value: Any) -> Path:
  if not isinstance(value, str | os.PathLike):
    raise InputError(f"{name}={short(value)}: must be the path of a run or of a state")
  return local(value)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
  """In here a Ctrl-C waits for the end: the model has read what the lanes count, and no less."""
  usual = signal.getsignal(signal.SIGINT)
  if not callable(usual) or threading.current_thread() is not threading.main_thread():
    yield
    return
  came: list[Any] = []
  signal.signal(signal.SIGINT, lambda *event: came.append(event))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, usual)
    if came:
      usual(*came[0])
