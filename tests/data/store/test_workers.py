"""Workers that prepare a corpus: what is said of one that hangs."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from infini_jax.config import InputError
from infini_jax.data.store.workers import finished


def test_a_worker_that_hangs_is_told_of_and_waited_for():
  said, goes_on = [], threading.Event()

  def say(line):
    said.append(line)
    if len(said) == 2:
      goes_on.set()

  hangs = lambda: goes_on.wait(30) and 2
  with ThreadPoolExecutor() as pool:
    work = [pool.submit(lambda: 1), pool.submit(hangs)]
    assert list(finished(work, 0.05, say)) == [1, 2], "it goes on when the worker does"
  assert len(said) >= 2
  assert all(line.startswith("warning: no corpus part was finished in") for line in said)
  assert "parts left: 1;" in said[0] and "\n" not in said[0]


def test_nothing_is_said_of_workers_that_work_and_an_error_is_raised():
  def fails():
    raise InputError("a.txt: not UTF-8")

  said = []
  with ThreadPoolExecutor() as pool:
    assert sorted(finished([pool.submit(lambda i=i: i) for i in range(9)], 30, said.append)) == [
      *range(9)
    ]
    with pytest.raises(InputError, match=r"a\.txt"):
      list(finished([pool.submit(fails)], 30, said.append))
  assert not said
