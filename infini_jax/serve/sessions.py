"""Sessions that are kept: on disk always, and the last used ones in memory too.

A session is a state file in a folder of the server; SQLite has an index of them. A session is
reported only when its file and its row are on the disk. So a server that is killed loses none.
"""

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from infini_jax.config import InputError
from infini_jax.inference import OpenedRun, Session
from infini_jax.serve.errors import ApiError
from infini_jax.serve.limits import Limits

INDEX, SUFFIX = "sessions.sqlite", ".state"
ROOM = 2**28  # bytes that must be free on the disk before a session is kept
TABLE = """
CREATE TABLE IF NOT EXISTS sessions (
  id TEXT PRIMARY KEY, model TEXT NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
  created REAL NOT NULL, used REAL NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL,
  ended INTEGER NOT NULL
)
"""


@dataclasses.dataclass
class Kept:
  """The entry of a session in the index.

  Attributes:
    id: a random name that cannot be guessed.
    owner: a short hash of the key that made it; empty if the server has no keys.
    name: what its owner calls it.
    created, used: seconds since 1970.
    tokens: the length of its text.
    bytes: of its file.
    ended: whether the model has ended its document.
    busy: whether a request changes it now.
  """

  id: str
  owner: str
  name: str
  created: float
  used: float
  tokens: int = 0
  bytes: int = 0
  ended: bool = False
  busy: bool = False


class Sessions:
  """The sessions of one model in one folder; several threads may use them.

  Args:
    folder: made if it does not exist; no other server may use it.
    run: the model.
    limits: how many there may be.

  Raises:
    InputError: another server uses the folder.
  """

  def __init__(self, folder: Path, run: OpenedRun, limits: Limits):
    self._folder, self._limits = folder, limits
    self._shared, self._model = Session(run), model_of(run)
    self._lock = threading.RLock()
    self._copying = threading.Lock()  # held while a session is copied, so that none changes
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    self._index = sqlite3.connect(folder / INDEX, timeout=0.2, check_same_thread=False)
    try:
      self._index.execute("PRAGMA locking_mode = EXCLUSIVE")
      self._index.execute("PRAGMA synchronous = FULL")
      self._index.execute("BEGIN EXCLUSIVE")
      self._index.execute(TABLE)
      self._index.commit()
    except sqlite3.OperationalError as error:
      raise InputError(
        f"{folder}: cannot be used ({error}); end the other server, or give --sessions-dir"
      ) from None
    except sqlite3.DatabaseError as error:
      raise InputError(f"{folder / INDEX}: damaged ({error}); move the folder away") from None
    self._kept = {kept.id: kept for kept in self._find()}
    self._memory: OrderedDict[str, Session] = OrderedDict()  # the last used is at the end
    self._arriving = 0  # sessions that are being read, and will be kept

  def close(self) -> None:
    """Closes the index."""
    self._index.close()

  @property
  def others(self) -> int:
    """The number of sessions in the folder that are of another model."""
    with self._lock:
      (count,) = self._index.execute("SELECT count(*) FROM sessions").fetchone()
    return count - len(self._kept)

  @property
  def in_memory(self) -> int:
    """The number of sessions whose states are in memory."""
    return len(self._memory)

  def __len__(self) -> int:
    return len(self._kept)

  def list(self, owner: str) -> list[Kept]:
    """The sessions of an owner, the last used first."""
    with self._lock:
      own = [kept for kept in self._kept.values() if kept.owner == owner]
    return sorted(own, key=lambda kept: -kept.used)

  def get(self, id: str, owner: str) -> Kept:
    """One of them.

    Raises:
      ApiError: there is none of this id, or it is of another owner.
    """
    kept = self._kept.get(id)
    if kept is None or kept.owner != owner:
      raise ApiError(404, f"no session {id[:80]!r}; GET /v1/sessions lists them", "no_session")
    return kept

  @contextlib.contextmanager
  def room(self) -> Iterator[None]:
    """Reserves one more session in the body.

    Raises:
      ApiError: there are too many, or the disk is full.
    """
    with self._lock:
      if len(self._kept) + self._arriving >= self._limits.sessions:
        most = self._limits.sessions
        raise ApiError(
          429, f"the server keeps {most} sessions (--sessions); delete one", "too_many_sessions"
        )
      if shutil.disk_usage(self._folder).free < ROOM:
        raise ApiError(507, "the disk of the server is full; delete a session", "disk_full")
      self._arriving += 1
    try:
      yield
    finally:
      with self._lock:
        self._arriving -= 1

  def add(self, session: Session, owner: str, name: str) -> Kept:
    """Keeps a new session, which no other request uses; it is on the disk when this returns."""
    now = time.time()
    kept = Kept(f"sess_{secrets.token_urlsafe(24)}", owner, name, now, now, busy=True)
    self._write(kept, session)
    return kept

  def borrow(self, id: str, owner: str) -> tuple[Kept, Session]:
    """A session to be changed by one request, until `give_back` or `drop`.

    Raises:
      ApiError: there is none, or another request uses it.
    """
    with self._copying, self._lock:
      kept = self._idle(id, owner)
      kept.busy = True
    try:
      return kept, self._open(kept)
    except BaseException:
      kept.busy = False
      raise

  def give_back(self, kept: Kept, session: Session) -> None:
    """Keeps a session that was borrowed, as it is now: on the disk when this returns."""
    kept.used = time.time()
    self._write(kept, session)

  def drop(self, kept: Kept) -> None:
    """Gives up what a request has done to a session: the file has what was kept before."""
    with self._lock:
      self._memory.pop(kept.id, None)
      kept.busy = False

  def fork(self, id: str, owner: str) -> Session:
    """A copy that is not kept. Several may be made at the same time.

    Raises:
      ApiError: as for `borrow`.
    """
    with self._copying:
      kept = self._idle(id, owner)
      copy = self._open(kept).fork()
      kept.used = time.time()
    return copy

  def file(self, id: str, owner: str) -> Path:
    """The state file of a session.

    Raises:
      ApiError: there is none.
    """
    return self._file(self.get(id, owner).id)

  def opened(self, id: str, owner: str) -> IO[bytes]:
    """The state file as it was kept last, opened: another that is kept then does not change it.

    Raises:
      ApiError: there is none, or it is gone.
    """
    try:
      return open(self.file(id, owner), "rb")
    except OSError as error:
      raise _lost(id) from error

  def remove(self, id: str, owner: str) -> None:
    """Removes a session and its file.

    Raises:
      ApiError: as for `borrow`.
    """
    with self._copying, self._lock:
      kept = self._idle(id, owner)
      self._index.execute("DELETE FROM sessions WHERE id = ?", (kept.id,))
      self._index.commit()
      del self._kept[kept.id]
      self._memory.pop(kept.id, None)
    self._file(kept.id).unlink(missing_ok=True)

  def _idle(self, id: str, owner: str) -> Kept:
    kept = self.get(id, owner)
    if kept.busy:
      raise ApiError(
        409, f"session {id}: another request uses it; wait, or fork it before", "session_busy"
      )
    return kept

  def _open(self, kept: Kept) -> Session:
    with self._lock:
      session = self._memory.pop(kept.id, None)
      if session is not None:
        self._memory[kept.id] = session
    if session is None:
      try:
        session = Session.load(self._file(kept.id), model=self._shared)
      except InputError as error:
        raise _lost(kept.id) from error
      self._remember(kept, session)
    return session

  def _write(self, kept: Kept, session: Session) -> None:
    """Writes the file, then the row, which makes the session visible."""
    file = self._file(kept.id)
    session.save(file)
    _sync(self._folder)
    kept.tokens, kept.bytes = session.positions[0], file.stat().st_size
    kept.ended = session.ended[0]
    row: dict[str, Any] = {**dataclasses.asdict(kept), "model": self._model}
    del row["busy"]
    names = ", ".join(row)
    with self._lock:
      values = ", ".join(f":{name}" for name in row)
      self._index.execute(f"INSERT OR REPLACE INTO sessions ({names}) VALUES ({values})", row)
      self._index.commit()
      self._remember(kept, session)
      self._kept[kept.id] = kept
      kept.busy = False

  def _remember(self, kept: Kept, session: Session) -> None:
    """Keeps a state in memory, and removes those from it that were used longest ago."""
    with self._lock:
      self._memory[kept.id] = session
      self._memory.move_to_end(kept.id)
      while len(self._memory) > self._limits.in_memory:
        self._memory.popitem(last=False)

  def _find(self) -> Iterator[Kept]:
    """The sessions of this model, after what a killed server left is removed."""
    self._index.row_factory = sqlite3.Row
    known = set()
    for row in self._index.execute("SELECT * FROM sessions").fetchall():
      fields = dict(row)
      known.add(f"{fields['id']}{SUFFIX}")
      if fields.pop("model") == self._model and self._file(fields["id"]).is_file():
        yield Kept(**{**fields, "ended": bool(fields["ended"])})
    for file in self._folder.glob(f"sess_*{SUFFIX}*"):
      if file.name not in known:  # it was never reported, or was to be removed
        file.unlink(missing_ok=True)

  def _file(self, id: str) -> Path:
    return self._folder / f"{id}{SUFFIX}"


def _lost(id: str) -> ApiError:
  said = f"session {id}: the server cannot read its file any more; delete the session"
  return ApiError(500, said, "session_lost")


def model_of(run: OpenedRun) -> str:
  """What a state must have been made with, as a short text."""
  made = f"{run.engine.checksum} {run.tokenizer.fingerprint}"
  return hashlib.sha256(made.encode()).hexdigest()[:32]


def fits(session: Session) -> bool:
  """Whether a loaded session has one lane, and a state of the size that the model's states have."""
  return session.lanes == 1 and session.state_bytes == Session(session.run).state_bytes


def _sync(folder: Path) -> None:
  """Brings the names of a folder's files to the disk."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(opened)
  finally:
    os.close(opened)
