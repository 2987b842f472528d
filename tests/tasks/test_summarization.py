"""Pairs of document and summary: exact tokens, each pair once an epoch, in an order by the seed."""

import json

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.tasks import PairLanes, Pairs
from infini_jax.tasks.summarization import MARK, Told
from tests.tiny import config, quiet

WORDS = np.array("one two three four five six seven eight nine ten".split())


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  text = lambda n: " ".join(rng.choice(WORDS, n))
  return [{"document": text(rng.integers(3, 60)), "summary": text(5)} for _ in range(30)]


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  untold = [{"document": "without", "summary": ""}]  # must not be read
  for split, part in (
    ("train", untold + rows[:24]), ("validation", rows[24:27]), ("test", rows[27:])
  ):  # fmt: skip
    lines = (json.dumps(row) + "\n" for row in part)
    (folder / f"{split}.jsonl").write_text("".join(lines))
  spec = f"jsonl:{folder}/*.jsonl?text=document&summary=summary"
  return prepare(spec, folder / "store", "bytes", console=quiet())


def lanes(store, segments=16, seed=0):
  return PairLanes(Pairs(store), summaries(segments=segments, seed=seed))


def summaries(segments=16, seed=0, **data):
  return config(
    task={"name": "summarization"},
    data={"segments": segments, "carry_state": False, "lanes": 4, **data},
    train={"seed": seed},
  )


def pairs_of(batch):
  """The input and the answer of each lane, as text."""
  for b in range(len(batch["tokens_BT"])):
    n = int(batch["mask_BT"][b].sum())
    assert batch["mask_BT"][b, :n].all(), "padding comes last"
    inputs, targets = batch["tokens_BT"][b, :n], batch["targets_BT"][b, :n]
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    asked = batch["asked_BT"][b, :n]
    assert asked.any() and not batch["asked_BT"][b, n:].any()
    first = int(asked.argmax())
    assert asked[first:].all(), "the summary is the end, and its end mark"
    np.testing.assert_allclose(batch["weights_BT"][b, :n][asked].sum(), 1, rtol=1e-5)
    text = lambda ids: bytes(ids[ids < 256].astype(np.uint8).tolist()).decode()
    yield text(inputs[1 : first + 1]), text(targets[first:-1])


def test_every_pair_is_read_whole_once_an_epoch(store, rows):
  made = lanes(store, segments=32)
  read = [pair for k in range(6) for pair in pairs_of(made.batch(k))]
  expected = [(row["document"] + MARK, row["summary"]) for row in rows[:24]]
  assert sorted(read) == sorted(expected), "6 steps of 4 lanes are an epoch of 24 pairs"


def test_texts_that_are_too_long_keep_their_beginning(store, rows):
  made, documents = lanes(store, segments=6), {row["summary"]: row["document"] for row in rows}
  cut = 0
  for k in range(6):
    batch = made.batch(k)
    assert batch["tokens_BT"].shape == (4, 96)
    for document, summary in pairs_of(batch):
      whole = documents[summary]
      assert whole.startswith(document.removesuffix(MARK))
      cut += len(document.removesuffix(MARK)) < len(whole)
  assert cut, "nothing was too long: a weak test"


def test_only_complete_summaries_end_with_the_end_mark(tmp_path):
  """For a summary that was cut, the last target is its next token."""
  chunk, summaries_ = 6 * 16, {n: "abcdefgh" * 9 for n in (47, 48, 49, 72)}
  for split in ("train", "validation", "test"):
    lines = [
      json.dumps({"document": f"{n}", "summary": text[:n]}) + "\n" for n, text in summaries_.items()
    ]
    (tmp_path / f"{split}.jsonl").write_text("".join(lines))
  spec = f"jsonl:{tmp_path}/*.jsonl?text=document&summary=summary"
  batch = lanes(prepare(spec, tmp_path / "store", "bytes", console=quiet()), segments=6).batch(0)
  seen = []
  for row in range(4):
    n = int(batch["mask_BT"][row].sum())
    targets = batch["targets_BT"][row, :n][batch["asked_BT"][row, :n]].tolist()
    size = int(bytes(batch["tokens_BT"][row, 1:3].tolist()))
    text = list(summaries_[size][:size].encode())
    assert targets == (text + [256])[: chunk // 2 + 1], f"a summary of {size} tokens"
    np.testing.assert_array_equal(batch["tokens_BT"][row, 1:n], batch["targets_BT"][row, : n - 1])
    seen.append(size)
  assert sorted(seen) == [47, 48, 49, 72]


def test_a_batch_depends_on_seed_and_step_and_rows_are_slices(store):
  made, again, other = lanes(store), lanes(store), lanes(store, seed=1)
  same = lambda a, b: all(np.array_equal(a[name], b[name]) for name in a)
  assert same(made.batch(3), again.batch(3)) and not same(made.batch(3), other.batch(3))
  part = made.batch(3, slice(1, 3))
  assert same(part, {name: rows[1:3] for name, rows in made.batch(3).items()})


def test_a_memory_begins_empty_at_every_example(store):
  batch = lanes(store).batch(0)
  assert batch["reset_BS"][:, 0].all()
  ends = -(-batch["mask_BT"].sum(1) // 16)
  for reset, end in zip(batch["reset_BS"], ends, strict=True):
    assert not reset[1:end].any() and reset[end:].all()


def test_a_corpus_without_summaries_and_too_short_a_chunk_are_refused(store, texts, tmp_path):
  plain = prepare(str(texts), tmp_path / "s", "bytes", console=quiet())
  with pytest.raises(InputError, match="has no summaries: choose one that has"):
    Pairs(plain)
  with pytest.raises(InputError, match="hold no document with its summary"):
    lanes(store, segments=2)


def test_a_validation_pair_is_document_mark_and_summary_in_any_slice(store, rows, rng):
  pairs = Pairs(store)
  told = Told(pairs, "validation")
  assert len(told.tokens) == 3
  for i, row in enumerate(rows[24:27]):
    whole = np.frombuffer(f"{row['document']}{MARK}{row['summary']}".encode(), np.uint8)
    assert told.tokens[i] == len(whole)
    assert told.first_D[i] == len(whole) - len(row["summary"])
    for _ in range(40):
      start, stop = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
      np.testing.assert_array_equal(told.read(i, start, stop), whole[start:stop])
