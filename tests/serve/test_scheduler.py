"""Reading and writing in turn: nobody waits for another's book, and a failure stays its own."""

import threading

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from infini_jax.inference import Session  # noqa: E402
from infini_jax.inference.batch import Batch  # noqa: E402
from infini_jax.inference.sampling import Sampling  # noqa: E402
from infini_jax.serve.errors import ApiError, Cancelled  # noqa: E402
from infini_jax.serve.job import Done, Failed, Job, Progress, Text, Wish, Written  # noqa: E402
from infini_jax.serve.metrics import Metrics  # noqa: E402
from infini_jax.serve.scheduler import Scheduler  # noqa: E402
from tests.serve.models import unending  # noqa: E402

LANES = 2
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def run():
  return unending()


@pytest.fixture(scope="module")
def batch(run):
  return Batch(run.engine, LANES)


@pytest.fixture
def scheduler(batch):
  metrics = Metrics()
  made = Scheduler(batch, LANES, metrics)
  yield made
  made.stop()
  metrics.close()


class Asked:
  """A job, and its events in the order of all jobs."""

  order: list = []

  def __init__(self, run, read=20, write=0, owner="", **more):
    self.events, self.ended = [], threading.Event()
    self.session = Session(run)
    ids = iter([5 + i % 200 for i in range(read)])
    wish = Wish(write, GREEDY, 0) if write else None
    close = more.pop("close", lambda session, error: session.positions[0])
    self.job = Job(self.session, Text(ids), wish, self._take, close, owner=owner, **more)

  def _take(self, event):
    self.events.append(event)
    Asked.order.append((self, event))
    if isinstance(event, Done | Failed):
      self.ended.set()

  def wait(self):
    assert self.ended.wait(120)
    return self.events[-1]

  def written(self):
    return [event.drawn.token for event in self.events if isinstance(event, Written)]


def want(run, read, write):
  session = Session(run)
  session.read([[5 + i % 200 for i in range(read)]])
  return [piece.token for piece in session.generate(write, temperature=0.0)]


def test_a_short_request_does_not_wait_for_a_book(run, scheduler):
  book = Asked(run, 3000)
  scheduler.submit(book.job)
  short = Asked(run, 20, 10)
  scheduler.submit(short.job)
  assert short.wait() == Done(31) and not book.ended.is_set()
  assert book.wait() == Done(3001)
  assert short.written() == want(run, 20, 10)
  counted = [event.tokens for event in book.events if isinstance(event, Progress)]
  assert counted == sorted(counted) and counted[-1] == 3000


def test_owners_take_turns(run, scheduler):
  """One that asks for much waits for itself alone."""
  Asked.order.clear()
  busy = [Asked(run, 700, owner="a") for _ in range(LANES)]
  many = [Asked(run, 700, owner="a") for _ in range(4)]
  for asked in (*busy, *many):
    scheduler.submit(asked.job)
  other = Asked(run, 700, owner="b")
  scheduler.submit(other.job)
  for asked in (*busy, *many, other):
    asked.wait()
  ends = [asked for asked, event in Asked.order if isinstance(event, Done)]
  assert ends.index(other) < ends.index(many[-1])


def test_jobs_join_and_leave_at_any_token(run, scheduler):
  sizes = [(3, 25), (40, 4), (17, 13), (80, 9), (5, 31)]
  asked = [Asked(run, *size) for size in sizes]
  for each in asked:
    scheduler.submit(each.job)
  for each, size in zip(asked, sizes, strict=True):
    assert each.wait() == Done(sum(size) + 1)
    assert each.written() == want(run, *size)
  assert scheduler.counts() == {"waiting": 0, "reading": 0, "writing": 0}


@pytest.mark.parametrize("read, write", [(100_000, 0), (10, 100_000)])
def test_a_job_that_is_cancelled_makes_room(run, scheduler, read, write):
  closed = []
  all_of_them = [
    Asked(run, read, write, close=lambda session, error: closed.append(error)) for _ in range(5)
  ]
  for asked in all_of_them:
    scheduler.submit(asked.job)
  for asked in all_of_them:
    scheduler.cancel(asked.job)
  assert all(isinstance(asked.wait().error, Cancelled) for asked in all_of_them)
  assert len(closed) == 5 and all(isinstance(error, Cancelled) for error in closed)
  after = Asked(run, 9, 3)
  scheduler.submit(after.job)
  assert after.wait() == Done(13)


def test_a_job_that_is_late_fails(run, scheduler):
  late = Asked(run, 10, 10**6, seconds=0.2)
  scheduler.submit(late.job)
  assert late.wait().error.code == "timeout"


def test_a_failure_is_that_of_its_job(run, scheduler, batch, monkeypatch):
  def broken():
    yield 7
    raise RuntimeError("the text breaks")

  job = Asked(run, 5)
  job.job._readable = broken()
  scheduler.submit(job.job)
  assert "breaks" in str(job.wait().error)
  good = Asked(run, 5, 5)
  scheduler.submit(good.job)
  assert good.wait() == Done(11)

  def failing():
    monkeypatch.undo()
    raise RuntimeError("the device breaks")

  monkeypatch.setattr(batch, "step", failing)
  lost = Asked(run, 5, 5)
  scheduler.submit(lost.job)
  assert "device" in str(lost.wait().error)
  again = Asked(run, 5, 5)
  scheduler.submit(again.job)
  assert again.wait() == Done(11) and again.written() == good.written()


def test_the_end_of_the_server_ends_all_jobs(run, batch):
  metrics = Metrics()
  scheduler = Scheduler(batch, LANES, metrics)
  asked = [Asked(run, 10**6), Asked(run, 5, 10**6), Asked(run, 10**6), Asked(run, 9)]
  for each in asked:
    scheduler.submit(each.job)
  scheduler.stop()
  late = Asked(run, 5)
  scheduler.submit(late.job)
  for each in (*asked[:3], late):
    assert isinstance(each.wait().error, ApiError) and each.wait().error.status == 503
  metrics.close()
