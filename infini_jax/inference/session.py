"""`Session`: a model with a state. It can read text, generate text, be copied and be saved."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax import buckets
from infini_jax.config import InputError
from infini_jax.data import Tokenizer
from infini_jax.data.chat.render import Message
from infini_jax.inference import chat as chats
from infini_jax.inference import saved, scoring
from infini_jax.inference.arguments import path_of, seeds, stops, whole
from infini_jax.inference.lane import Lane, uninterrupted
from infini_jax.inference.sampling import NOTHING, RECENT, Sampling
from infini_jax.inference.texts import Readable, check_tokens, tokens_of
from infini_jax.inference.writing import Piece, Writer


class Session:
  """One or several texts in parallel (`lanes`, by default one); each begins with bos.

  The model reads tokens in whole chunks. The last tokens wait until there are more, or until text
  is generated. So the result does not depend on the pieces in which a text is read: it is equal to
  the last bit (with several lanes, up to rounding). Generated tokens are part of the text.

  A lane holds one document. After the model has generated eos, nothing can follow, because nothing
  follows it in training. `reset` begins a new document; a `fork` from before eos can continue.
  """

  def __init__(self, run: saved.OpenedRun, lanes: int = 1, begin: bool = True):
    """A new session of an open model: see `load`. With `begin=False` the texts have no bos."""
    self.run = run
    self._lanes = [Lane() for _ in range(whole("lanes", lanes, least=1))]
    self._stream = run.engine.start(self.lanes)
    self.told: chats.Told | None = None  # the conversation that it holds, if it holds one
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
    ema: bool = False,
  ) -> "Session":
    """Opens a run, or a state that `save` wrote.

    Args:
      path: the workdir of a run (a converted model is one too), or the file of a state.
      lanes: the number of lanes of a new session. For a state it must be that of the state, or 1.
      step: the step of the checkpoint; by default the newest, or for a state its own.
      model: for a state: the path of its run, if it has moved; or a session that has its
        parameters.
      ema: for a run: takes the moving average of the parameters (`config.optimizer.ema`), not
        their last values. A state records which of them it was made with.

    Raises:
      InputError: there is no such run or checkpoint; a state is damaged, or of another model.
    """
    path = path_of("path", path)
    lanes = whole("lanes", lanes, least=1)
    step = None if step is None else whole("step", step)
    if path.is_dir():
      if model is not None:
        raise InputError(f"{path}: a run needs no model=; give a state, or leave it out")
      return cls(saved.open_run(path, step, ema), lanes)
    if not path.exists():
      raise InputError(f"{path}: no run or state here; give a run's folder, or what `save` wrote")
    if ema:
      raise InputError(f"{path}: a state records its parameters; leave ema=True (--ema) out")
    opened = model.run if isinstance(model, Session) else model
    if opened is not None and not isinstance(opened, saved.OpenedRun):
      opened = path_of("model", opened)
    run, stream, texts, told = saved.load(path, opened, step)
    if lanes not in (1, len(texts)):
      raise InputError(f"{path}: a state of {len(texts)} lanes, not {lanes}; leave lanes= out")
    return cls._of(run, stream, texts, told)

  @classmethod
  def _of(
    cls, run: saved.OpenedRun, stream: Any, lanes: list[Lane], told: chats.Told | None
  ) -> "Session":
    session = object.__new__(cls)
    session.run, session._stream, session._lanes, session.told = run, stream, lanes, told
    return session

  def save(self, path: str | Path) -> None:
    """Saves the state in one file, completely or not at all; after `load` it gives the same tokens.

    Raises:
      InputError: the file cannot be written.
      OSError: the object store does not answer.
    """
    file, stream = path_of("path", path, writes=True), self.run.engine.together(self._stream)
    saved.save(file, self.run, stream, self._lanes, self.told)
    buckets.flush()

  def fork(self) -> "Session":
    """An independent copy; the parameters are shared."""
    stream = jax.tree.map(jnp.copy, self._stream)
    return self._of(self.run, stream, [lane.copy() for lane in self._lanes], self.told)

  def reset(self, lanes: int | Sequence[int] | None = None) -> None:
    """Begins a new document, as in a new session: in all lanes, or in the lanes of these numbers.

    Raises:
      InputError: there is no such lane.
    """
    some = range(self.lanes) if lanes is None else np.atleast_1d(np.asarray(lanes)).tolist()
    chosen = {whole("lane", i, most=self.lanes - 1) for i in some}
    with uninterrupted():
      self.told = None
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
    """The number of lanes."""
    return len(self._lanes)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the model."""
    return self.run.tokenizer

  @property
  def positions(self) -> list[int]:
    """The number of tokens of each lane's text so far: bos, read and generated tokens."""
    return [lane.position for lane in self._lanes]

  @property
  def waiting(self) -> list[int]:
    """The number of tokens of each lane that the model has not read yet."""
    return [len(lane.unread) for lane in self._lanes]

  @property
  def ended(self) -> list[bool]:
    """For each lane, whether the model has ended its document; it then cannot read or write."""
    return [lane.ended(self.tokenizer.eos) for lane in self._lanes]

  @property
  def recent(self) -> list[list[int]]:
    """The last tokens of each lane's text, at most 256."""
    return [list(lane.recent) for lane in self._lanes]

  @property
  def state_bytes(self) -> int:
    """The bytes of the state on the device."""
    return sum(x.nbytes for x in jax.tree.leaves(self._stream))

  def wait(self) -> None:
    """Waits until the device has finished all computation, for time measurements."""
    jax.block_until_ready(self._stream)

  def read(
    self,
    readable: Readable | Sequence[Readable],
    advance: Callable[[int], None] | None = None,
    *,
    marked: bool = False,
  ) -> int:
    """Reads more text, which may be endless; at most one chunk of it is in memory.

    Args:
      readable: a text, the Path of a text file, an open file or stream of text, or tokens (any
        iterable of numbers or of arrays). With several lanes, a list with one of these for each.
      advance: called with the number of tokens read so far in this call, of all lanes.
      marked: bos and eos may be among tokens, as a chat template writes them.

    Returns:
      The number of tokens that were read, of all lanes.

    Raises:
      InputError: the model has ended the document; one cannot be read; a text is the name of a
        file; numbers are not tokens, or are bos or eos. Then, as after Ctrl-C, up to one chunk
        before the error may be lost; all that the session has read before is kept.
    """
    readables: Any = [readable] if self.lanes == 1 else readable
    if not isinstance(readables, list | tuple) or len(readables) != self.lanes:
      raise InputError(f"a session of {self.lanes} lanes reads a list of {self.lanes} texts")
    tokens = [tokens_of(each, self.tokenizer) for each in readables]
    self.told = None
    for i, (its, ended) in enumerate(zip(tokens, self.ended, strict=True)):
      if ended and not marked and next(its, None) is not None:
        raise InputError(self._over(i))
    T, N = self.run.engine.chunk, self.run.engine.segment
    taken = 0
    while True:
      for lane, its in zip(self._lanes, tokens, strict=True):
        before = lane.position
        ids = islice(its, max(0, T + 1 - len(lane.unread)))
        vocabulary = self.run.engine.config.model.vocab_size
        lane.take(check_tokens(ids, vocabulary, self.tokenizer, begins=not before, marked=marked))
        taken += lane.position - before
      if advance is not None:
        advance(taken)
      long = [i for i, lane in enumerate(self._lanes) if len(lane.unread) > T]
      if not long:
        return taken
      with uninterrupted():
        if len(long) == self.lanes and all(lane.read % N == 0 for lane in self._lanes):
          tokens_BT = np.array([lane.give(T, N) for lane in self._lanes], np.int32)
          self._stream = self.run.engine.read(self._stream, tokens_BT)
        else:
          self._feed(long)

  def score(self, readable: Any, *, empty: bool = False, marked: bool = False) -> Any:
    """How likely texts are after what was read. The session stays as it is.

    Args:
      readable: a text, Path, file or tokens; or a list of texts, Paths or lists of tokens, each by
        itself. With several lanes, a list with one of these for each.
      empty: with the memory held empty: each segment is read as if a document began there.
      marked: as for `read`.

    Returns:
      A `scoring.Score` for each text, in lists as the texts are.

    Raises:
      InputError: as `read`; there is no token before the first, or no memory to hold empty.
    """
    self._check_open()
    return scoring.score(self.run, self._stream, self._lanes, readable, scoring.How(empty, marked))

  def scored(self, readable: Readable, *, empty: bool = False) -> Iterator[scoring.Block]:
    """As `score` of one text with one lane, chunk by chunk as it is read: it may be endless."""
    self._check_open()
    start = scoring.begun(self.run, self._stream, self._lanes, empty)
    return scoring.blocks(self.run, start, [scoring.Text(0, readable)], scoring.How(empty))

  def generate(
    self,
    tokens: int = 200,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    ends: Collection[int] = (),
    seed: int | Sequence[int] = 0,
  ) -> Iterator[Piece]:
    """Generates text in every lane until it ends; yields one `Piece` for each token.

    A draw depends only on the text, the seed and the position. You may stop the iteration at any
    time; the text ends with the last token drawn. A lane that has ended generates nothing.

    Args:
      tokens: the most tokens to generate in each lane.
      temperature: 0 is greedy.
      top_p: draw only from the likeliest tokens that together reach this probability.
      top_k: draw only from this many likeliest tokens; 0: all.
      repetition_penalty: above 1, tokens among the last 256 become less likely.
      stop: texts that end a lane; they are not shown, but are part of the text.
      ends: tokens that end a lane in addition to eos, such as the one that ends a turn of a
        conversation.
      seed: the seed of the draws, 0 to 2^32 - 1: one for each lane, or one; lane i then has
        `seed + i`.

    Raises:
      InputError: an argument is of the wrong type or out of its range, a lane has no token to
        continue from, or the model has ended all documents.
    """
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty)
    tokens, seeds_B, stop = whole("tokens", tokens), seeds(seed, self.lanes), stops(stop)
    if not all(self.positions):
      raise InputError("nothing to continue from: read at least one token in every lane")
    if all(self.ended):
      raise InputError(self._over(0))
    writers = [Writer(self.tokenizer, lane.recent, stop, ends) for lane in self._lanes]
    return self._write(tokens, sampling, writers, seeds_B)

  def chat(
    self,
    messages: Sequence[Message],
    say: chats.Say | None = None,
    *,
    tokens: int = 512,
    template: str = "own",
    advance: Callable[[int], None] | None = None,
    **sampling: Any,
  ) -> str:
    """Answers a conversation, written with the chat template of the model.

    The session holds the conversation afterwards, with the answer. If the text of the next call
    continues from there, only what is new is read; else, for example with a template that writes
    earlier answers differently, all of it is read again.

    Args:
      messages: all messages so far, each with `role` and `content`; the last one is a question.
      say: called with each new piece of the answer while it is written.
      tokens: the most tokens of the answer.
      template: as `config.chat.template`: own, plain, file:FILE or Jinja text.
      advance: called with the number of tokens read so far.
      **sampling: temperature, top_p, top_k, repetition_penalty and seed, as for `generate`.

    Returns:
      The answer, without space around it.

    Raises:
      InputError: the session has several lanes or holds other text; the messages are wrong; the
        template is missing or fails.
    """
    asked = self.ask(messages, template)
    self.read([asked.ids], advance, marked=True)
    self.told = asked.open()
    answer = chats.Answer(asked, self.tokenizer)
    for piece in self.generate(tokens, ends=(asked.end,), **sampling):
      answer.add(piece)
      if say is not None and piece.text:
        say(piece.text)
    self.told = answer.told(self.positions[0])
    return answer.text.strip()

  def ask(
    self, messages: Sequence[Message], template: str = "own", follows: bool = False
  ) -> chats.Asked:
    """What is still to read of a conversation before its answer: `read` with `marked`.

    Another conversation is forgotten. With `follows`, one may begin after other text. Raises
    InputError as `chat` does.
    """
    return self.opened(*chats.rendered(self.tokenizer, template, messages), follows)

  def opened(self, chat: chats.Chat, text: str, follows: bool = False) -> chats.Asked:
    """As `ask`, of a conversation that is rendered, or of the rest of it."""
    if self.lanes > 1:
      raise InputError(f"a session of {self.lanes} lanes holds no conversation; open one with 1")
    asked = chats.asked(chat, text, self.told, self._lanes[0], follows)
    if asked.anew:
      self.reset()
      self._lanes[0] = Lane()  # the template writes bos itself, if it belongs there
    return asked

  def _write(
    self, tokens: int, sampling: Sampling, writers: list[Writer], seeds_B: np.ndarray
  ) -> Iterator[Piece]:
    going = list(range(self.lanes))
    for left in reversed(range(tokens)):
      going = [i for i in going if not self.ended[i]]
      if not going:
        return
      with uninterrupted():
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
    recent_BQ = np.full((self.lanes, RECENT), NOTHING, np.int32)
    for row, lane in zip(recent_BQ, self._lanes, strict=True):
      row[RECENT - len(lane.recent) :] = lane.recent
    return self.run.engine.draw(last_BV, seeds_B, positions_B, recent_BQ, sampling)

  def _feed(self, lanes: list[int], kept: int = 0) -> jax.Array:
    """Reads the next tokens of these lanes but the last `kept`, in one segment: the logits."""
    N = self.run.engine.segment
    pieces: list[list[int]] = [[] for _ in self._lanes]
    for i in lanes:
      lane = self._lanes[i]
      pieces[i] = lane.give(min(N - lane.read % N, len(lane.unread) - kept), N)
    logits_BV, self._stream = self.run.engine.extend(self._stream, pieces)
    return logits_BV

  def _check_open(self) -> None:
    for i in (i for i, ended in enumerate(self.ended) if ended):
      raise InputError(self._over(i))

  def _over(self, lane: int) -> str:
    which = f" of lane {lane}" if self.lanes > 1 else ""
    return (
      f"the model has ended the document{which}, so nothing follows it: reset() begins another, "
      f"and a fork() made before continues from there"
    )
