"""One thread that owns the device: it reads for some requests and writes for others, in turn."""

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from infini_jax.inference.batch import Batch
from infini_jax.serve.errors import ApiError, Cancelled
from infini_jax.serve.job import Job
from infini_jax.serve.metrics import Metrics

KEEPERS = 4  # threads that write sessions to the disk


class Scheduler:
  """Runs jobs.

  A job waits until there is room, in the turn of its owner. Then it reads, chunk by chunk, in turn
  with the others that read. Then it writes in a lane of the batch, token by token, together with
  the others that write. While there are some that write, reading gets at most half of the time: a
  chunk is read, and then tokens are written for as long as the chunk took.
  """

  def __init__(self, batch: Batch, lanes: int, metrics: Metrics):
    self._batch, self._lanes, self._metrics = batch, lanes, metrics
    self._changed = threading.Condition()
    self._waiting: dict[str, deque[Job]] = {}  # by owner, the owner whose turn it is first
    self._reading: deque[Job] = deque()
    self._ready: deque[Job] = deque()  # jobs that have read, and wait for a lane
    self._writing: dict[int, Job] = {}  # by lane
    self._owed = 0.0  # seconds of writing before the next chunk is read
    self._stops: BaseException | None = None
    self._keepers = ThreadPoolExecutor(KEEPERS, "keeper")
    self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
    self._thread.start()

  def submit(self, job: Job) -> None:
    """Adds a job."""
    with self._changed:
      if self._stops is None:
        self._waiting.setdefault(job.owner, deque()).append(job)
        self._changed.notify()
        return
    job.settle(self._stops)

  def cancel(self, job: Job) -> None:
    """Cancels a job; it fails with `Cancelled` a little later."""
    with self._changed:
      job.cancelled = True
      self._changed.notify()

  def stop(self) -> None:
    """Ends all jobs and the thread; returns when the sessions of all jobs are closed."""
    with self._changed:
      self._stops = ApiError(503, "the server stops; ask again when it runs", "server_stops")
      self._changed.notify()
    self._thread.join()
    self._keepers.shutdown()

  def counts(self) -> dict[str, int]:
    """The number of jobs that wait, read and write."""
    waiting = sum(map(len, [*self._waiting.values()]))
    reading, ready, writing = len(self._reading), len(self._ready), len(self._writing)
    return {"waiting": waiting + ready, "reading": reading, "writing": writing}

  def _run(self) -> None:
    while True:
      with self._changed:
        while not (self._stops or self._waiting or self._reading or self._ready or self._writing):
          self._changed.wait()
        self._admit()
      self._drop()
      if self._stops is not None and not (self._waiting or self._reading or self._writing):
        return
      if self._reading and (self._owed <= 0 or not self._writing):
        started = time.perf_counter()
        self._read()
        self._owed = time.perf_counter() - started
      while self._ready and self._batch.free:
        self._join(self._ready.popleft())
      if self._writing:
        started = time.perf_counter()
        self._write()
        self._owed -= time.perf_counter() - started

  def _admit(self) -> None:
    """Starts jobs that read: each owner in turn, as many as there are lanes."""
    while self._waiting and len(self._reading) + len(self._ready) < self._lanes:
      owner = next(iter(self._waiting))
      jobs = self._waiting.pop(owner)
      self._reading.append(jobs.popleft())
      if jobs:
        self._waiting[owner] = jobs  # behind the other owners

  def _drop(self) -> None:
    """Ends jobs that were cancelled, that are late, or that run when the server ends."""
    for job in self._all():
      error = self._stops or self._over(job)
      if error is not None:
        self._end(job, error)

  def _over(self, job: Job) -> BaseException | None:
    if job.cancelled:
      return Cancelled()
    if time.monotonic() > job.ends:
      return ApiError(504, "the request took longer than --seconds of the server", "timeout")
    return None

  def _all(self) -> list[Job]:
    with self._changed:
      waiting = [job for jobs in self._waiting.values() for job in jobs]
    return [*waiting, *self._reading, *self._ready, *self._writing.values()]

  def _read(self) -> None:
    job = self._reading.popleft()
    with self._failing(job):
      started, before = time.perf_counter(), job.session.positions[0] - job.session.waiting[0]
      more = job.read_on()
      job.session.wait()  # else its time would be counted as that of the next tokens
      read = job.session.positions[0] - job.session.waiting[0] - before
      self._metrics.read(read, time.perf_counter() - started)
      if more:
        self._reading.append(job)
      elif job.writes:
        self._ready.append(job)
      else:
        self._end(job, None)

  def _join(self, job: Job) -> None:
    with self._failing(job):
      assert job.wish is not None
      lane = self._batch.join(job.session, job.wish.how, job.wish.seed, job.wish.likeliest)
      self._writing[lane] = job

  def _write(self) -> None:
    started = time.perf_counter()
    try:
      drawn = self._batch.step()
    except Exception as error:  # the states of all lanes are lost
      traceback.print_exc()
      self._batch.clear()
      lost, self._writing = self._writing, {}
      for job in lost.values():
        self._end(job, error)
      return
    self._metrics.wrote(len(drawn), time.perf_counter() - started)
    for lane, one in drawn.items():
      job = self._writing[lane]
      with self._failing(job):
        if not job.take(one):
          self._end(job, None)

  @contextlib.contextmanager
  def _failing(self, job: Job) -> Iterator[None]:
    """Ends the job if the body fails."""
    try:
      yield
    except Exception as error:
      self._end(job, error)

  def _end(self, job: Job, error: BaseException | None) -> None:
    """Removes a job from its queue or its lane; a keeper closes it."""
    for lane in [lane for lane, one in self._writing.items() if one is job]:
      del self._writing[lane]
      self._batch.leave(lane)
    with self._changed:
      for jobs in (self._reading, self._ready, *self._waiting.values()):
        if job in jobs:
          jobs.remove(job)
      self._waiting = {owner: jobs for owner, jobs in self._waiting.items() if jobs}
    self._keepers.submit(job.settle, error)
