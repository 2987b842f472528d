"""What the routes of the server use: the model, its batch, the sessions, the limits."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from infini_jax.config import InputError
from infini_jax.evaluation.gates import gates
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.batch import Batch, catch_up
from infini_jax.inference.chat import Asked, rendered
from infini_jax.inference.engine import Engine
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.texts import tokens_of
from infini_jax.serve.errors import ApiError
from infini_jax.serve.fields import Asking
from infini_jax.serve.job import Event, Job, Text, Wish
from infini_jax.serve.limits import Limits
from infini_jax.serve.memory import looking
from infini_jax.serve.metrics import Metrics
from infini_jax.serve.scheduler import Scheduler
from infini_jax.serve.sessions import Kept, Sessions, fits, model_of

PROBE = ({"role": "user", "content": "?"},)
WARM = "warm.state"  # a file that is written and read before the first request


class Service:
  """One model that is served.

  Args:
    run: the model. Its path is in no state file, because clients get these.
    name: what the clients call it.
    folder: of the sessions.
    limits: how much it takes.
    template: the chat template, as `config.chat.template`.

  Raises:
    InputError: the state of the model grows; the folder cannot be used.
  """

  def __init__(
    self, run: OpenedRun, name: str, folder: Path, limits: Limits, template: str = "own"
  ):
    engine = Engine(run.engine.config, run.engine.params, apart=False)
    self.run = run = run._replace(workdir="", engine=engine)
    self.name, self.limits, self.template = name, limits, template
    batch = Batch(engine, limits.lanes)
    self.sessions = Sessions(folder, run, limits)
    self.metrics = Metrics()
    self.gates_LH = gates(run.engine.config.model, run.engine.params)
    self.fingerprint = model_of(run)[:16]
    self.created = int(time.time())
    self._shared = Session(run)  # loaded states use its parameters
    warm_up(run, batch, folder / WARM)
    self.warm = self.metrics.compiled  # programs that were compiled before the first request
    self.scheduler = Scheduler(batch, limits.lanes, self.metrics)
    self._watch()

  @property
  def state_bytes(self) -> int:
    """The size of a session on the device."""
    return self._shared.state_bytes

  @property
  def chats(self) -> bool:
    """Whether the vocabulary has the chat template that was chosen."""
    try:
      return bool(rendered(self.run.tokenizer, self.template, PROBE))
    except InputError:
      return False

  def close(self) -> None:
    """Ends all requests, and closes everything."""
    self.scheduler.stop()
    self.sessions.close()
    self.metrics.close()

  def complete(self, asking: Asking, owner: str, emit: Callable[[Event], None]) -> tuple[Job, int]:
    """The job of a request for a completion, and the length of the session's text before it.

    The job's result is the length of the text at the end. A request that fails, or whose client
    goes away, leaves the session as it was before.

    Raises:
      ApiError: there is no such session, another request uses it, or the model has ended it.
      InputError: the messages are wrong, or the vocabulary has no chat template.
    """
    kept, session = self._session(asking, owner)
    try:
      if session.ended[0]:
        raise ApiError(
          400,
          f"session {asking.session}: the model has ended its document, so nothing can follow; "
          "fork a session from before the end",
          "session_ended",
          "session",
        )
      asked: Asked | None = None
      before = session.positions[0] if asking.session else 0
      if asking.kind == "chat":
        asked = session.ask(asking.messages, self.template, follows=True)
        before = 0 if asked.anew else before
        readable: Iterator[int] = iter(asked.ids.tolist())
      else:
        readable = tokens_of(asking.readable(), session.tokenizer)
    except BaseException:
      if kept is not None:
        self.sessions.drop(kept)
      raise
    wish = Wish(
      tokens=asking.tokens,
      how=asking.how,
      seed=asking.seed,
      stop=asking.stop,
      ends=(asked.end,) if asked else (),
      likeliest=bool(asking.logprobs),
    )

    def close(session: Session, error: BaseException | None) -> int:
      tokens = session.positions[0]
      if kept is not None and error is None:
        self.sessions.give_back(kept, session)
      elif kept is not None:
        self.sessions.drop(kept)
      return tokens

    text, seconds = Text(readable, asked), self.limits.seconds
    return Job(session, text, wish, emit, close, owner=owner, seconds=seconds), before

  def read(
    self, file: IO[bytes], size: int, owner: str, name: str, emit: Callable[[Event], None]
  ) -> Job:
    """The job that reads a text into a new session; its result is `Kept`.

    Args:
      file: the text, in UTF-8; it is closed at the end.
      size: its bytes.
      owner: of the session.
      name: of the session.
      emit: takes the events.

    Raises:
      ApiError: there are too many sessions.
    """
    room = contextlib.ExitStack()
    room.enter_context(self.sessions.room())

    def close(session: Session, error: BaseException | None) -> Kept | None:
      with room, file:
        return self.sessions.add(session, owner, name) if error is None else None

    session = Session(self.run)
    tokens = tokens_of(file, session.tokenizer, name=name or "the text")
    text = Text(tokens, share=lambda: file.tell() / size)
    emit = looking(session, emit)
    return Job(session, text, None, emit, close, owner=owner, seconds=self.limits.seconds)

  def fork(self, id: str, owner: str, name: str) -> Kept:
    """A new session with what another one has read.

    Raises:
      ApiError: there is no such session, or there are too many.
    """
    with self.sessions.room():
      return self.sessions.add(self.sessions.fork(id, owner), owner, name)

  def load(self, content: IO[bytes], owner: str, name: str) -> Kept:
    """A new session from the content of a state file.

    Raises:
      ApiError: it holds no state of this model.
    """
    with tempfile.NamedTemporaryFile() as file:
      shutil.copyfileobj(content, file)
      file.flush()
      try:
        session = Session.load(file.name, model=self._shared)
        self._check(session)
      except Exception as error:
        said = str(error).replace(f"{file.name}: ", "")
        said = said if isinstance(error, InputError) else "damaged"
        raise ApiError(400, f"the state: {said}", "wrong_state") from None
    with self.sessions.room():
      return self.sessions.add(session, owner, name)

  def _check(self, session: Session) -> None:
    """Raises InputError for a state that would not fit into a lane, or that no text makes."""
    if not fits(session):
      raise InputError("has another size than the states of this model")
    known = np.array([0, *session.recent[0]])
    V = self.run.engine.config.model.vocab_size
    if known.min() < 0 or known.max() >= V or not 0 < session.waiting[0] <= session.positions[0]:
      raise InputError("holds tokens that are none")

  def _session(self, asking: Asking, owner: str) -> tuple[Kept | None, Session]:
    if asking.session and asking.fork:
      return None, self.sessions.fork(asking.session, owner)
    if asking.session:
      return self.sessions.borrow(asking.session, owner)
    return None, Session(self.run)

  def _watch(self) -> None:
    watch, counts = self.metrics.watch, self.scheduler.counts
    watch("requests_waiting", "Requests that wait for a lane.", lambda: counts()["waiting"])
    watch("requests_reading", "Requests that read.", lambda: counts()["reading"])
    watch("lanes_writing", "Lanes that write.", lambda: counts()["writing"])
    watch("lanes", "Lanes.", lambda: self.limits.lanes)
    watch("sessions", "Sessions that are kept.", lambda: len(self.sessions))
    watch("sessions_in_memory", "Those in memory.", lambda: self.sessions.in_memory)
    watch("programs_at_start", "Programs compiled before the first request.", lambda: self.warm)


def warm_up(run: OpenedRun, batch: Batch, file: Path) -> None:
  """Compiles every program that a request can need, by using it.

  To JAX, a new state and one that a program has made are of different kinds.
  """
  engine = run.engine
  id = next(id for id in range(3, 99) if id not in (run.tokenizer.bos, run.tokenizer.eos))
  new, read = Session(run), Session(run)
  read.read([[id] * (2 * engine.chunk + 1)])
  while catch_up(read):
    pass
  read.save(file)
  loaded = Session.load(file, model=new)
  file.unlink()
  for session in (new, read, loaded):
    session.fork().read([[id] * (engine.chunk + 1)])
    for _ in range(2):  # into a new batch, and into one that has written
      lane = batch.join(session.fork(), Sampling(), 0, likeliest=True)
      batch.step()
      batch.leave(lane).fork()
    batch.clear()
  for size in engine.paddings():
    for stream in (engine.start(1), engine.read(engine.start(1), np.full((1, engine.chunk), id))):
      engine.extend(stream, [[id] * size])
