"""Pairs of document and summary: exact tokens, each pair once an epoch, read from the store."""

import json

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.data.store.store import Documents
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import Pairs, train_lanes
from infini_jax.tasks.summarization import MARK
from infini_jax.training.loop import train
from tests.tasks.test_chat import check_resumes, units
from tests.tiny import config, quiet

WORDS = np.array("one two three four five six seven eight nine ten".split())
EOS, CONTEXT = 256, 0.25


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  text = lambda n: " ".join(rng.choice(WORDS, n))
  return [{"document": text(rng.integers(3, 60)), "summary": text(5)} for _ in range(30)]


def stored(folder, **splits):
  for split in ("train", "validation", "test"):
    lines = (json.dumps(row) + "\n" for row in splits.get(split, splits["train"]))
    (folder / f"{split}.jsonl").write_text("".join(lines))
  spec = f"jsonl:{folder}/*.jsonl?text=document&summary=summary"
  return prepare(spec, folder / "store", "bytes", console=quiet())


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
  untold = [{"document": "without", "summary": ""}]  # must not be read
  splits = {"train": untold + rows[:24], "validation": rows[24:27], "test": rows[27:]}
  return stored(tmp_path_factory.mktemp("pairs"), **splits)


def settings(store, segments=16, seed=0, carry_state=False, **train):
  return config(
    store.folder,
    task={"name": "summarization", "context_weight": CONTEXT},
    data={"segments": segments, "carry_state": carry_state, "lanes": 4},
    train={"seed": seed, **train},
  )


def lanes(store, **how):
  return train_lanes(settings(store, **how), Pairs(store))


def whole(row):
  """The targets of a pair."""
  return [*f"{row['document']}{MARK}{row['summary']}".encode(), EOS]


@pytest.mark.parametrize("segments, carry", [(32, False), (3, True)])
def test_every_pair_is_read_whole_once_an_epoch(store, rows, segments, carry):
  made = lanes(store, segments=segments, carry_state=carry)
  found = {tuple(targets): (inputs, weights) for inputs, targets, weights in units(made, 60)}
  for row in rows[:24]:
    targets, start = whole(row), len(row["document"] + MARK)
    inputs, weights = found.pop(tuple(targets))
    assert inputs == [EOS, *targets[:-1]], "bos is eos in this vocabulary"
    np.testing.assert_allclose(weights[start:], 1 / (len(targets) - start), rtol=1e-6)
    np.testing.assert_allclose(weights[:start], CONTEXT / start, rtol=1e-6)
  for targets in found:  # the last of a lane may go on in the next batch
    assert carry and any(tuple(whole(row)[: len(targets)]) == targets for row in rows[:24])


def test_short_pairs_share_a_chunk_and_an_epoch_reads_every_row_once(store):
  c = settings(store, segments=32).with_fields(data={"lanes": 1})
  made = train_lanes(c, Pairs(store))
  assert len(made._rows) < 24 == len(units(made, len(made._rows)))


def test_texts_that_are_too_long_keep_their_beginning(store, rows):
  made, documents = lanes(store, segments=6), {row["summary"]: row["document"] for row in rows}
  cut, found = 0, units(made, 12)
  for _, targets, _ in found:
    assert len(targets) <= 96 and targets[-1] == EOS
    document, summary = bytes(targets[:-1]).decode().split(MARK)
    assert documents[summary].startswith(document)
    cut += len(document) < len(documents[summary])
  assert {bytes(targets[:-1]).decode().split(MARK)[1] for _, targets, _ in found} == {
    row["summary"] for row in rows[:24]
  }
  assert cut, "nothing was too long: a weak test"


def test_only_complete_summaries_end_with_the_end_mark(tmp_path):
  """For a summary that was cut, the last target is its next token."""
  chunk, texts = 6 * 16, {n: "abcdefgh" * 9 for n in (47, 48, 49, 72)}
  pairs = [{"document": f"{n}", "summary": text[:n]} for n, text in texts.items()]
  store, seen = stored(tmp_path, train=pairs), set()
  for _, targets, _ in units(lanes(store, segments=6), 8):
    size = int(bytes(targets[:2]))
    text = list(texts[size][:size].encode())
    assert targets[2 + len(MARK) :] == (text + [EOS])[: chunk // 2 + 1], f"a summary of {size}"
    seen.add(size)
  assert seen == set(texts)


@pytest.mark.parametrize("carry", [False, True])
def test_a_batch_depends_on_seed_and_step_and_rows_are_slices(store, carry):
  made, again, other = (lanes(store, seed=seed, carry_state=carry) for seed in (0, 0, 1))
  same = lambda a, b: all(np.array_equal(a[name], b[name]) for name in a)
  assert same(made.batch(3), again.batch(3)) and not same(made.batch(3), other.batch(3))
  part = made.batch(3, slice(1, 3))
  assert same(part, {name: rows[1:3] for name, rows in made.batch(3).items()})


def test_a_training_reads_the_tokens_of_its_chunks_alone(store, monkeypatch):
  """The store may be of any size: nothing of it is kept."""
  read, plainly = [], Documents.read

  def counted(documents, document, start, stop):
    read.append(stop - start)
    return plainly(documents, document, start, stop)

  monkeypatch.setattr(Documents, "read", counted)
  made = lanes(store, segments=3, carry_state=True)
  assert not read
  made.batch(5)
  assert 0 < sum(read) <= 4 * (3 * 16 + 1)


def test_a_corpus_without_summaries_and_too_short_a_chunk_are_refused(store, texts, tmp_path):
  plain = prepare(str(texts), tmp_path / "s", "bytes", console=quiet())
  with pytest.raises(InputError, match="has no summaries: choose one that has"):
    Pairs(plain)
  with pytest.raises(InputError, match="hold no document with its summary"):
    lanes(store, segments=2)
  lanes(store, segments=2, carry_state=True)
  with pytest.raises(InputError, match="no summary for none.jsonl:0; add some, or choose another"):
    Pairs(store).split("test", document="none.jsonl:0")


def test_a_pair_to_evaluate_is_document_mark_and_summary_in_any_slice(store, rows, rng):
  told, cut = (Pairs(store).split("validation", max_tokens=most) for most in (0, 20))
  assert len(told) == 3 == len(told.names) and not told.cut_X.any()
  for i, row in enumerate(rows[24:27]):
    targets, start = whole(row), len(row["document"] + MARK)
    assert told.tokens[i] == len(targets)
    for _ in range(40):
      a, b = sorted(rng.integers(0, len(targets) + 1, 2).tolist())
      np.testing.assert_array_equal(told.read(i, a, b), targets[a:b])
      np.testing.assert_array_equal(told.said(i, a, b), np.arange(a, b) >= start)
    prompt, answer = told.last(i)
    assert prompt.tolist() == [EOS, *targets[:start]] and answer.tolist() == targets[start:]
    assert bytes(prompt[told.own].tolist()).decode() == row["document"]
    few = whole(row | {"document": row["document"][:20]})
    assert cut.read(i, 0, int(cut.tokens[i])).tolist() == few
    assert cut.cut_X[i] == (len(row["document"]) > 20) and cut.read_X[i] <= 20


def test_an_older_run_goes_on_as_a_new_run_alone(store, tmp_path):
  """It read one pair a chunk, so that its next batch would be another."""
  workdir, c = Workdir(tmp_path / "old"), settings(store)
  workdir.claim(c, f"{store.fingerprint} summaries")
  with pytest.raises(InputError, match=f"new run with --config.train.start_from={workdir.path}"):
    workdir.claim(c, Pairs(store).fingerprint)
  with pytest.raises(InputError, match="holds a run on another corpus"):
    workdir.claim(c, store.fingerprint)


@pytest.mark.slow
def test_a_run_on_long_documents_goes_on_to_the_bit(store, tmp_path):
  c = settings(store, segments=3, carry_state=True, checkpoint_every=3, steps=6)
  c = c.with_fields(data={"lanes": 8})
  run = tmp_path / "run"
  made = train(c, str(run), quiet())
  check_resumes(c, run, made)
