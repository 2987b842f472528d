import collections
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data.lanes.documents import EvalLanes, TrainLanes
from infini_jax.data.lanes.order import Shuffle
from tests.data.data_fakes import FakeDocuments

BOS, EOS = 7, 9

CASES = st.fixed_dictionaries(
  {
    "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=12),
    "lanes": st.integers(1, 5),
    "segments": st.integers(1, 4),
    "segment_length": st.integers(1, 9),
    "seed": st.integers(0, 3),
  }
)


def train_lanes(lengths, **kwargs):
  lengths = [*lengths, kwargs["segment_length"]]  # never shorter than a segment
  return FakeDocuments(lengths), TrainLanes(FakeDocuments(lengths), bos=BOS, eos=EOS, **kwargs)


def eval_lanes(lengths, lanes, segments, segment_length, seed=0, **kwargs):
  documents = FakeDocuments(lengths)
  return documents, EvalLanes(
    documents, bos=BOS, lanes=lanes, segments=segments, segment_length=segment_length, **kwargs
  )


def joined(batches):
  """The chunks of all lanes, joined along T."""
  return {
    name: np.concatenate([batch[name] for batch in batches], axis=1)
    for name in next(iter([*batches]))
    if not name.endswith("_B")
  }


def same(a, b):
  return a.keys() == b.keys() and all(
    np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
  )


def segments_of(lane, length):
  """(tokens, targets, mask, reset) of each segment of a lane."""
  split = [lane[name].reshape(-1, length) for name in ("tokens_BT", "targets_BT", "mask_BT")]
  return zip(*split, lane["reset_BS"], strict=True)


def documents_of(lane, length):
  """Inputs and targets of each document of a lane, cut at the resets."""
  found, full = [], True
  for tokens, targets, mask, reset in segments_of(lane, length):
    assert not (np.diff(mask.astype(int)) > 0).any(), "padding stands at a segment's end only"
    assert not tokens[~mask].any() and not targets[~mask].any()
    if reset:
      found.append(([], []))
    elif mask.any():
      assert full, "only a document's last segment may be short"
    if mask.any():
      full = mask.all()
      found[-1][0].extend(tokens[mask].tolist())
      found[-1][1].extend(targets[mask].tolist())
  return found


@settings(max_examples=150, deadline=None)
@given(case=CASES)
def test_lanes_are_whole_documents_and_every_epoch_has_each_once(case):
  documents, lanes = train_lanes(**case)
  length, B = case["segment_length"], case["lanes"]
  size = len(documents)
  chunks = 1 + int(3 * (documents.tokens + 2 * length).sum()) // (length * case["segments"])
  whole = joined([lanes.batch(k) for k in range(chunks)])
  order = {}
  for b in range(B):
    lane = {name: array[b] for name, array in whole.items()}
    found = documents_of(lane, length)
    for r, (tokens, targets) in enumerate(found[:-1]):  # the last may continue in a later batch
      document = targets[0] // 1000 - 1
      ids = documents.ids(document).tolist()
      assert tokens == [BOS, *ids] and targets == [*ids, EOS]
      order[r * B + b] = document
  assert len([e for e in order if e < size]) == size, "the batches must hold the first epoch"
  for epoch in range(3):
    places = range(epoch * size, (epoch + 1) * size)
    if all(e in order for e in places):
      assert sorted(order[e] for e in places) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(case=CASES, data=st.data())
def test_batch_is_a_pure_function_of_seed_and_k(case, data):
  _, lanes = train_lanes(**case)
  _, other = train_lanes(**case)
  steps = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
  in_order = {k: lanes.batch(k) for k in sorted(steps)}
  for k in steps:
    assert same(other.batch(k), in_order[k])
  again = pickle.loads(pickle.dumps(lanes))
  assert same(again.batch(steps[0]), in_order[steps[0]])


@settings(max_examples=60, deadline=None)
@given(case=CASES, k=st.integers(0, 20), cut=st.integers(0, 5))
def test_rows_are_slices_of_the_whole(case, k, cut):
  _, lanes = train_lanes(**case)
  _, evaluation = eval_lanes(**case)
  for make in (lanes.batch, evaluation.chunk):
    whole = make(k)
    parts = [make(k, slice(0, cut)), make(k, slice(cut, None))]
    for name in whole:
      assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@settings(max_examples=40, deadline=None)
@given(case=CASES, k=st.integers(0, 20), data=st.data())
def test_a_host_has_the_place_of_every_document_and_reads_only_its_own(case, k, data):
  _, lanes = eval_lanes(**case)
  own = data.draw(st.sets(st.integers(0, lanes.lanes - 1)).map(sorted))
  whole, chunk = lanes.chunk(k), lanes.chunk(k, read=np.array(own, int))
  for name, expected in whole.items():
    if name in ("tokens_BT", "targets_BT"):
      expected = np.where(np.isin(np.arange(lanes.lanes), own)[:, None], expected, 0)
    assert np.array_equal(chunk[name], expected), name


@settings(max_examples=150, deadline=None)
@given(case=CASES, max_tokens=st.sampled_from([0, 1, 13]), max_documents=st.sampled_from([0, 1, 4]))
def test_evaluation_predicts_every_token_of_each_document_once(case, max_tokens, max_documents):
  limits = {"max_tokens": max_tokens, "max_documents": max_documents}
  documents, lanes = eval_lanes(**case, **limits)
  length = case["segment_length"]
  whole = joined(list(lanes))
  assert whole["tokens_BT"].shape == (case["lanes"], len(lanes) * case["segments"] * length)
  assert whole["mask_BT"].sum() == lanes.predictions
  seen = collections.Counter()
  for b in range(case["lanes"]):
    lane = {name: array[b] for name, array in whole.items()}
    where = list(zip(lane["document_BS"], lane["position_BS"], strict=True))
    for (document, position), (tokens, targets, mask, reset) in zip(
      where, segments_of(lane, length), strict=True
    ):
      assert mask.any() == (document >= 0)
      assert reset == (position == 0)
      expected = 1000 * (document + 1) + position + np.arange(length)
      assert np.array_equal(targets[mask], expected[mask])
      inputs = np.where(position + np.arange(length) == 0, BOS, expected - 1)
      assert np.array_equal(tokens[mask], inputs[mask])
      seen.update(targets[mask].tolist())
    for tokens, targets in documents_of(lane, length):
      assert tokens[1:] == targets[:-1], "a lane follows one document until it ends"
  wanted = range(len(documents))[: max_documents or None]
  ids = [documents.ids(d)[: max_tokens or None].tolist() for d in wanted]
  assert seen == collections.Counter(sum(ids, []))


@settings(max_examples=100, deadline=None)
@given(case=CASES, data=st.data())
def test_tokens_read_before_are_skipped_and_the_rest_begins_with_a_chunk(case, data):
  documents, length = FakeDocuments(case["lengths"]), case["segment_length"]
  chunk = case["segments"] * length
  skips = st.integers(0, 3).map(lambda chunks: chunks * chunk)
  skip_X = np.array([data.draw(skips) % max(1, n - n % chunk) for n in documents.tokens.tolist()])
  skip_X -= skip_X % chunk
  _, lanes = eval_lanes(**case, skip_X=skip_X)
  seen = collections.Counter()
  for batch in lanes:
    for b in range(case["lanes"]):
      first, position = batch["document_BS"][b, 0], batch["position_BS"][b, 0]
      starts = first >= 0 and position == skip_X[first]
      assert batch["skip_B"][b] == (skip_X[first] if starts else 0)
      assert batch["reset_BS"][b, 0] == (first < 0 or position == 0)
    assert not batch["reset_BS"][batch["position_BS"] > 0].any()
    seen.update(batch["targets_BT"][batch["mask_BT"]].tolist())
  wanted = (documents.ids(d)[skip:].tolist() for d, skip in enumerate(skip_X.tolist()))
  assert seen == collections.Counter(sum(wanted, []))
  assert lanes.predictions == sum(seen.values())


def test_evaluation_keeps_lanes_busy():
  _, lanes = eval_lanes([1, 1, 1, 1, 100, 1, 1, 1], lanes=2, segments=1, segment_length=10)
  assert len(lanes) == 10, "the longest document must start first"


def test_shapes_and_types():
  _, lanes = train_lanes([30, 5], lanes=3, segments=2, segment_length=4, seed=0)
  _, evaluation = eval_lanes([30, 5], lanes=3, segments=2, segment_length=4)
  expected = {
    "tokens_BT": ((3, 8), np.int32),
    "targets_BT": ((3, 8), np.int32),
    "mask_BT": ((3, 8), np.bool_),
    "reset_BS": ((3, 2), np.bool_),
  }
  assert {k: (v.shape, v.dtype) for k, v in lanes.batch(0).items()} == expected
  expected |= {"document_BS": ((3, 2), np.int32), "position_BS": ((3, 2), np.int64)}
  expected |= {"skip_B": ((3,), np.int64)}
  assert {k: (v.shape, v.dtype) for k, v in next(iter(evaluation)).items()} == expected


def test_order_changes_with_epoch_and_seed_and_never_between_versions():
  def order(seed):
    return [piece.document for piece in Shuffle(np.ones(6, int), 1, seed).pieces(0, 0, 18)]

  assert order(0) != order(1)
  assert order(0)[:6] != order(0)[6:12] != order(0)[12:]
  # If this fails, runs that continue from a checkpoint read other batches: keep the old order.
  assert order(0) == [3, 2, 1, 0, 4, 5, 4, 5, 1, 2, 0, 3, 0, 4, 3, 5, 1, 2]


def test_state_not_carried_resets_every_chunk():
  case = dict(lengths=[100, 90], lanes=2, segments=3, segment_length=4, seed=0)
  _, carried = train_lanes(**case)
  _, fresh = train_lanes(**case, carry_state=False)
  for k in range(10):
    a, b = carried.batch(k), fresh.batch(k)
    assert b["reset_BS"][:, 0].all()
    assert np.array_equal(a["reset_BS"][:, 1:], b["reset_BS"][:, 1:])
    assert np.array_equal(a["tokens_BT"], b["tokens_BT"])
  assert not carried.batch(1)["reset_BS"][:, 0].any()


def test_order_is_the_same_across_blocks(monkeypatch):
  case = dict(lengths=list(range(1, 30)), lanes=3, segments=4, segment_length=5, seed=1)
  _, whole = train_lanes(**case)
  expected = [whole.batch(k) for k in range(200)]
  monkeypatch.setattr("infini_jax.data.lanes.order.BLOCK", 7)
  _, blocks = train_lanes(**case)
  assert all(same(blocks.batch(k), expected[k]) for k in reversed(range(200)))


def test_threads_get_the_same_batches():
  case = dict(lengths=list(range(1, 60)), lanes=4, segments=4, segment_length=5, seed=1)
  _, lanes = train_lanes(**case)
  expected = [lanes.batch(k) for k in range(300)]
  _, shared = train_lanes(**case)
  with ThreadPoolExecutor(8) as pool:
    batches = list(pool.map(shared.batch, reversed(range(300))))
  assert all(same(a, b) for a, b in zip(reversed(batches), expected, strict=True))


def test_only_the_tokens_of_the_rows_are_read():
  documents = FakeDocuments([5000] * 8)
  reads = []

  def read(document, start, stop):
    reads.append(stop - start)
    return documents.ids(document)[start:stop]

  documents_read = FakeDocuments([5000] * 8)
  documents_read.read = read
  lanes = TrainLanes(
    documents_read, bos=BOS, eos=EOS, lanes=8, segments=2, segment_length=10, seed=0
  )
  lanes.batch(100, slice(2, 4))
  assert len(reads) == 2 and sum(reads) == 2 * 21


def test_documents_of_a_store(store):
  documents, tokenizer = store.split("train"), store.tokenizer
  lanes = TrainLanes(documents, bos=256, eos=256, lanes=2, segments=4, segment_length=32, seed=0)
  batch = lanes.batch(0)
  assert tokenizer.decode(batch["tokens_BT"][0]).startswith("Document ")


def test_too_short_corpora_are_refused():
  with pytest.raises(InputError, match="shorter than one segment: 9 training tokens.*10; add"):
    TrainLanes(FakeDocuments([4, 5]), bos=0, eos=0, lanes=1, segments=1, segment_length=10, seed=0)
  with pytest.raises(InputError, match="no documents to evaluate.*choose another split"):
    eval_lanes([], lanes=1, segments=1, segment_length=10)
