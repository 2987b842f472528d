import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from infini_jax.data import EvalLanes, TrainLanes, eval_batches, train_batches
from tests.data.data_fakes import FakeDocuments

SHAPE = {"lanes": 3, "segments": 2, "segment_length": 5}


def train_lanes(documents):
  return TrainLanes(documents, bos=7, eos=9, seed=0, **SHAPE)


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("prefetch", [1, 4, 30])
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_batches_come_in_order_from_any_step(prefetch, rows):
  lanes = train_lanes(FakeDocuments(range(1, 40)))
  batches = list(train_batches(lanes, 17, 60, rows, prefetch))
  assert len(batches) == 43
  assert all(same(batch, lanes.batch(17 + i, rows)) for i, batch in enumerate(batches))
  assert list(train_batches(lanes, 60, 60)) == []


def test_nothing_before_the_start_is_made():
  lanes = train_lanes(FakeDocuments(range(1, 40)))
  asked, batch = [], lanes.batch
  lanes.batch = lambda k, rows: (asked.append(k), batch(k, rows))[1]
  next(train_batches(lanes, 1000, 1010))
  assert asked and min(asked) == 1000


def test_an_evaluation_is_read_ahead_completely():
  lanes = EvalLanes(FakeDocuments(range(1, 40)), bos=7, **SHAPE)
  batches = list(eval_batches(lanes))
  assert len(batches) == len(lanes)
  assert all(same(a, b) for a, b in zip(batches, lanes, strict=True))


def test_error_while_reading_ahead_reaches_the_caller():
  documents = FakeDocuments(range(1, 40))
  lanes = train_lanes(documents)
  lanes._documents.read = lambda *_: (_ for _ in ()).throw(RuntimeError("the disk is gone"))
  with pytest.raises(RuntimeError, match="the disk is gone"):
    list(train_batches(lanes, 0, 10))


class Hangs:
  """Lanes whose reads of some batches hang so many times."""

  def __init__(self, lanes, **times):
    self._lanes, self._left = lanes, {int(k[1:]): n for k, n in times.items()}
    self.released = threading.Event()

  def batch(self, k, rows):
    if self._left.get(k, 0) > 0:
      self._left[k] -= 1
      self.released.wait(60)
    return self._lanes.batch(k, rows)


def test_a_read_that_hangs_is_tried_again(caplog):
  lanes = train_lanes(FakeDocuments(range(1, 40)))
  hangs = Hangs(lanes, _3=1, _5=2)
  with caplog.at_level(logging.WARNING):
    batches = list(train_batches(hangs, 0, 8, patience=0.3))
  hangs.released.set()
  assert len(batches) == 8
  assert all(same(batch, lanes.batch(k)) for k, batch in enumerate(batches))
  said = [line for line in caplog.messages if "another thread tries" in line]
  assert len(said) == 3 and any("batch 3 was not read in 0.3 s" in line for line in said)


def test_a_read_that_always_hangs_names_the_batch_and_ends():
  hangs = Hangs(train_lanes(FakeDocuments(range(1, 40))), _2=9)
  started = time.perf_counter()
  with pytest.raises(TimeoutError, match=r"batch 2 was not read in 3 x 0.2 s .*file system"):
    list(train_batches(hangs, 0, 8, patience=0.2))
  hangs.released.set()
  assert time.perf_counter() - started < 10


def test_an_error_under_patience_reaches_the_caller():
  lanes = train_lanes(FakeDocuments(range(1, 40)))
  lanes._documents.read = lambda *_: (_ for _ in ()).throw(RuntimeError("the disk is gone"))
  with pytest.raises(RuntimeError, match="the disk is gone"):
    list(train_batches(lanes, 0, 10, patience=60))


def test_needs_no_flags_parsed_and_data_alone_brings_no_jax(store):
  code = f"""
import sys
from infini_jax.data import Store, TrainLanes, train_batches
assert not {{"jax", "grain", "tensorflow"}} & set(sys.modules), "data must start without JAX"
documents = Store.open({str(store.folder)!r}).split("train")
lanes = TrainLanes(documents, bos=256, eos=256, lanes=2, segments=2, segment_length=8, seed=0)
assert len(list(train_batches(lanes, 3, 9))) == 6
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
