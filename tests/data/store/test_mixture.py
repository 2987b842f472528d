"""A mixture of stores: tokens follow the weights, and each epoch of a store is complete."""

import itertools
import pickle
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import InputError
from infini_jax.data import open_prepared, prepare
from infini_jax.data.lanes.documents import TrainLanes
from infini_jax.data.lanes.order import Mix, Mixed
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import mixture_shares, open_dataset, train_lanes
from tests.data.data_fakes import FakeDocuments
from tests.tiny import changed, config, quiet, write_corpus

STORES = st.lists(
  st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.1, 9)),
  min_size=2,
  max_size=4,
)


def mixed(stores, lanes, length=3, seed=0):
  """The order for stores of (tokens of each document, weight), with documents in random order."""
  tokens = np.concatenate([lengths for lengths, _ in stores])
  source = np.repeat(np.arange(len(stores)), [len(lengths) for lengths, _ in stores])
  shuffled = np.random.default_rng(0).permutation(len(tokens))
  tokens, source = tokens[shuffled], source[shuffled]
  mix = Mix(source, tuple(weight for _, weight in stores))
  return tokens, mix, Mixed(-(-tokens // length), tokens, mix, lanes, seed)


@settings(max_examples=40, deadline=None)
@given(stores=STORES, lanes=st.integers(1, 4), seed=st.integers(0, 3))
def test_shares_follow_the_weights_and_every_epoch_of_a_store_has_each_document_once(
  stores, lanes, seed
):
  tokens, mix, order = mixed(stores, lanes, seed=seed)
  stop = 4 * sum(-(-tokens // 3)) // lanes + 100
  dealt = []
  for lane in range(lanes):
    at, current = 0, None
    for piece in order.pieces(lane, 0, stop):
      assert piece.slot == at and (piece.first == 0 or current == piece.document)
      if piece.first == 0:
        dealt.append((at, lane, piece.document))
      at, current = at + piece.segments, piece.document
    assert at == stop, "a lane has holes"
  dealt = [document for _, _, document in sorted(dealt)]
  longest = [max(lengths) for lengths, _ in stores]
  had = np.zeros(len(stores))
  for document in dealt:
    had[mix.store_X[document]] += tokens[document]
    for i, j in itertools.permutations(range(len(stores)), 2):
      lead = had[i] / mix.weights[i] - had[j] / mix.weights[j]
      assert lead <= longest[i] / mix.weights[i] + 1e-9, "never ahead by more than a document"
  for i, (lengths, _) in enumerate(stores):
    own, size = [d for d in dealt if mix.store_X[d] == i], len(lengths)
    for start in range(0, len(own) - size + 1, size):
      epoch = own[start : start + size]
      assert sorted(epoch) == np.flatnonzero(mix.store_X == i).tolist()


def test_a_batch_is_a_pure_function_of_seed_and_k(monkeypatch, rng):
  stores = [(rng.integers(1, 90, 7), 1.0), (rng.integers(1, 9, 30), 2.0)]
  tokens, mix, _ = mixed(stores, 3)

  def make(seed=0):
    shape = {"lanes": 3, "segments": 4, "segment_length": 5}
    return TrainLanes(FakeDocuments(tokens), bos=7, eos=9, **shape, seed=seed, mix=mix)

  lanes = make()
  expected = [lanes.batch(k)["tokens_BT"] for k in range(120)]
  assert not np.array_equal(expected[0], make(1).batch(0)["tokens_BT"])
  rows = pickle.loads(pickle.dumps(make())).batch(90, np.array([0, 2]))["tokens_BT"]
  assert np.array_equal(rows, expected[90][[0, 2]])
  monkeypatch.setattr("infini_jax.data.lanes.order.BLOCK", 5)
  blocks = make()
  for k in reversed(range(120)):
    assert np.array_equal(blocks.batch(k)["tokens_BT"], expected[k])


@settings(max_examples=40, deadline=None)
@given(
  stores=STORES,
  lanes=st.integers(1, 4),
  firsts=st.lists(st.integers(0, 90), min_size=1, max_size=3, unique=True).map(sorted),
  data=st.data(),
)
def test_each_stage_follows_its_own_weights(stores, lanes, firsts, data):
  some = st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=len(stores), max_size=len(stores))
  stages = tuple((first, tuple(data.draw(some.filter(any)))) for first in firsts)
  tokens, mix, plain = mixed(stores, lanes)
  order = Mixed(-(-tokens // 3), tokens, mix._replace(stages=stages), lanes, 0)
  begun = []
  for lane in range(lanes):
    at, before = 0, list(plain.pieces(lane, 0, firsts[0]))
    assert before == list(order.pieces(lane, 0, firsts[0])), "nothing changes before a stage"
    for piece in order.pieces(lane, 0, 200):
      assert piece.slot == at, "a lane has holes"
      begun.append((piece.slot, lane, piece.document))
      at += piece.segments
  begun.sort()
  longest = [max(lengths) for lengths, _ in stores]
  for (first, weights), end in zip(stages, (*firsts[1:], 200), strict=True):
    had = np.zeros(len(stores))
    for slot, _, document in begun:
      if first <= slot < end:
        had[mix.store_X[document]] += tokens[document]
        for i, j in itertools.permutations(np.flatnonzero(weights), 2):
          lead = had[i] / weights[i] - had[j] / weights[j]
          assert lead <= longest[i] / weights[i] + 1e-9, "never ahead by more than a document"
    assert not had[np.array(weights) == 0].any(), "a weight of 0 is nothing of the store"


def test_a_batch_of_stages_is_a_pure_function_of_seed_and_k(monkeypatch, rng):
  stores = [(rng.integers(1, 90, 7), 1.0), (rng.integers(1, 9, 30), 2.0)]
  tokens, mix, _ = mixed(stores, 3)
  mix = mix._replace(stages=((40, (1.0, 0.0)), (100, (1.0, 9.0))))
  make = lambda: TrainLanes(
    FakeDocuments(tokens), bos=7, eos=9, lanes=3, segments=4, segment_length=5, seed=0, mix=mix
  )
  lanes = make()
  expected = [lanes.batch(k)["tokens_BT"] for k in range(60)]
  rows = pickle.loads(pickle.dumps(make())).batch(30, np.array([0, 2]))["tokens_BT"]
  assert np.array_equal(rows, expected[30][[0, 2]])
  monkeypatch.setattr("infini_jax.data.lanes.order.BLOCK", 5)
  blocks = make()
  for k in reversed(range(60)):
    assert np.array_equal(blocks.batch(k)["tokens_BT"], expected[k])


def test_the_order_never_changes_between_versions():
  mix = Mix(np.array([0, 1, 0, 1, 1]), (1.0, 2.0))
  order = Mixed(np.array([4, 1, 2, 2, 1]), np.array([40, 10, 20, 20, 10]), mix, 1, 0)
  found = [piece.document for piece in order.pieces(0, 0, 30)]
  # If this fails, runs that continue from a checkpoint read other batches: keep the old order.
  assert found == [2, 3, 1, 4, 0, 4, 3, 1, 1, 3, 4, 2, 1, 4, 3, 0, 3]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  """A store of many short documents, and one of few long ones, with the same tokenizer."""
  folder, made = tmp_path_factory.mktemp("mixture"), {}
  for name, documents, characters in (("short", 40, 40), ("long", 3, 4000)):
    corpus = write_corpus(folder / "texts" / name, documents, characters)
    made[name] = prepare(str(corpus), folder / name, "bytes", console=quiet())
  return made


def mixture(stores, **weights):
  parts = (f"{stores[name].folder}={weight}" for name, weight in weights.items())
  return config(data={"path": f"mix:{','.join(parts)}", "lanes": 4})


def test_a_config_mixes_stores_by_tokens(stores, tmp_path):
  c = mixture(stores, long=3, short=1)
  source = open_dataset(c, tmp_path, quiet())
  documents = source.split("train")
  names = [str(stores[name].folder) for name in ("long", "short")]
  assert documents.stores == names and source.tokenizer.size == 257
  assert len(documents) == len(documents.names) == len(set(documents.names)) == 43
  assert documents.store_X[:7].tolist() == [0, 1, 0, 1, 0, 1, 1], "the first are of all stores"
  for i, name in enumerate(("long", "short")):
    own = stores[name].split("train")
    mine = np.flatnonzero(documents.store_X == i)
    assert [documents.names[d] for d in mine] == [f"{names[i]}/{one}" for one in own.names]
    for d, tokens in zip(mine.tolist(), own.tokens.tolist(), strict=True):
      place = mine.tolist().index(d)
      assert np.array_equal(documents.read(d, 0, tokens), own.read(place, 0, tokens))
  # An order with the same seed gives the store of each token of a batch.
  lanes = train_lanes(c, source)
  had = np.zeros(2)
  for lane in range(4):
    for piece in lanes._order.pieces(lane, 0, 4000):
      had[documents.store_X[piece.document]] += piece.segments
  assert 0.7 < had[0] / had.sum() < 0.8, "segments, which the padding of short ones has a part in"
  batch = lanes.batch(11)
  prepared = open_prepared(c.data.path, tmp_path)
  again = train_lanes(c, prepared).batch(11)
  assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_the_stages_of_a_config_begin_at_their_steps(stores, tmp_path):
  c = mixture(stores, long=3, short=1)
  staged = changed(c, data=changed(c.data, stages=("20=0:1", "60=1:1")))
  source = open_dataset(staged, tmp_path, quiet())
  plain, lanes = train_lanes(c, source), train_lanes(staged, source)
  same = [
    all(np.array_equal(plain.batch(k)[name], batch[name]) for name in batch)
    for k, batch in ((k, lanes.batch(k)) for k in range(80))
  ]
  assert all(same[:20]) and not any(same[60:])
  documents, S = source.split("train"), c.data.segments
  for lane in range(4):
    for k in range(80):
      for piece in lanes._order.pieces(lane, k * S, (k + 1) * S):
        if piece.first == 0 and 20 <= k < 60:
          assert documents.store_X[piece.document] == 1
  long, short = (str(stores[name].folder) for name in ("long", "short"))
  told = [mixture_shares(staged, source, k) for k in (0, 19, 20, 59, 60, 999)]
  assert told[0] == told[1] == {long: 0.75, short: 0.25}
  assert told[2] == told[3] == {long: 0.0, short: 1.0}
  assert told[4] == told[5] == {long: 0.5, short: 0.5}
  assert mixture_shares(c, source, 0) == {}
  wrong = changed(c, data=changed(c.data, stages=("20=1:2:3",)))
  with pytest.raises(InputError, match="'20=1:2:3': has 3 weights, .* has 2 stores; give a weight"):
    train_lanes(wrong, source)


def test_a_run_continues_only_with_the_same_stores_and_weights(stores, tmp_path):
  c, workdir = mixture(stores, long=3, short=1), Workdir(tmp_path / "run")
  fingerprint = lambda c: open_dataset(c, tmp_path, quiet()).fingerprint
  workdir.claim(c, fingerprint(c))
  workdir.claim(c, fingerprint(mixture(stores, long=6, short=2)))
  for other in (mixture(stores, long=2, short=1), mixture(stores, short=1)):
    with pytest.raises(InputError, match="another corpus"):
      workdir.claim(c, fingerprint(other))


def test_stores_of_any_name_can_be_mixed(stores, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = ["a,b=2,c", "is it?", "50% & more "]
  for name, old in zip(names, ("long", "short", "short"), strict=True):
    shutil.copytree(stores[old].folder, tmp_path / name)
  written = [re.sub(r"([,?&= ])", r"\\\1", name) for name in names]
  path = f"mix:{written[0]}=3, {written[1]}=0.5,{written[2]}=0.5"
  source = open_dataset(config(data={"path": path}), tmp_path, quiet())
  assert source.split("train").stores == names and source.weights == (0.75, 0.125, 0.125)
  with pytest.raises(
    InputError, match=r"'a' is not a prepared store .*; in a name, put a backslash"
  ):
    open_dataset(config(data={"path": "mix:a,b=2"}), tmp_path, quiet())
  (tmp_path / "round").symlink_to("round")
  (tmp_path / "link").symlink_to(names[0])
  for other, match in (
    ("round", "round: not a token store"),
    ("link", "'link' is named twice"),
  ):
    path = f"mix:{written[0]}=1,{other}=1"
    with pytest.raises(InputError, match=match):
      open_dataset(config(data={"path": path}), tmp_path, quiet())


def test_what_cannot_be_mixed_is_refused(stores, tmp_path):
  good, other = stores["long"].folder, tmp_path / "other"
  texts = stores["short"].source
  prepare(texts, other, "train:300", console=quiet())
  for path, message in (
    (f"mix:{good}", "is not a prepared store with a weight above 0, such as mix:stores/books=2"),
    (f"mix:{good}=", "with a weight above 0"),
    (f"mix:{good}=0,{other}=1", "with a weight above 0"),
    (f"mix:{good}=1,{good}=2", "twice; name it once"),
    (f"mix:{good}=1,{good}/../{good.name}=2", "twice; name it once"),
    (f"mix:{good}=1,{tmp_path}/none=2", "none: not a token store; make one with"),
    (f"mix:{good}=1,{other}=2", f"other tokens than '{good}'; prepare it with --tokenizer=bytes"),
    (f"mix:{other}=1,{good}=2", f"prepare it with --tokenizer=sentencepiece:{other}/"),
  ):
    with pytest.raises(InputError) as error:
      open_dataset(config(data={"path": path}), tmp_path, quiet())
    assert message in str(error.value) and "\n" not in str(error.value)
  c = mixture(stores, long=1, short=1)
  with pytest.raises(InputError, match="made with the tokenizer 'bytes'"):
    open_dataset(changed(c, data=changed(c.data, tokenizer="train:300")), tmp_path, quiet())
  own = changed(c, data=changed(c.data, tokenizer="train:300"))
  source = open_dataset(own, tmp_path, quiet(), tokenizer=stores["long"].tokenizer)
  assert source.weights == (0.5, 0.5), "a run that has its tokens compares these alone"
  with pytest.raises(InputError, match="no summaries"):
    open_dataset(c, tmp_path, quiet(), "summarization")
