"""From a config to the data of a training; text with warm memories."""

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import TrainLanes
from infini_jax.data.store.store import Store
from infini_jax.tasks import TaskLanes, open_dataset, open_training, train_lanes
from tests.tiny import config

WARM = {"share": 0.5, "segments": 3, "min_tokens": 400, "max_tokens": 4000}


def text_config(store, **sections):
  data = {"path": str(store.folder), "lanes": 4, **sections.pop("data", {})}
  return config(data=data, **sections)


def test_the_source_is_what_the_config_asks_for(store, tmp_path, quiet):
  c = text_config(store)
  assert isinstance(open_dataset(c, tmp_path, quiet), Store)
  task = open_dataset(c, tmp_path, quiet, "passkey")
  assert task.facts.depth_of and task.tokenizer.size == 257, "another task, in the run's own tokens"
  saved = store.tokenizer
  assert open_dataset(c, tmp_path, quiet, "passkey", saved).tokenizer is saved
  own = config(
    data={"tokenizer": "task", "carry_state": False}, task={"name": "recall", "min_segments": 1}
  )
  assert not open_dataset(own, tmp_path, quiet).facts.depth_of
  assert isinstance(train_lanes(c, store), TrainLanes)


def test_a_task_without_text_is_written_in_the_vocabulary_trained_on_the_corpus(
  corpus, tmp_path, quiet
):
  for task in ({"name": "needle", "family": "frequent_words"}, {"name": "passkey"}):
    task["min_segments"] = 40
    data = {"tokenizer": "train:400", "carry_state": False, "segments": 64}
    c = config(corpus, data=data, task=task, model={"vocab_size": 400})
    source = open_dataset(c, tmp_path / "store", quiet)
    assert source.tokenizer.size == 400
    assert source.tokenizer.fingerprint == Store.open(tmp_path / "store").tokenizer.fingerprint
    train_lanes(c, source).batch(0)
    with pytest.raises(InputError, match="trained on text; set config.data.path to a corpus"):
      open_dataset(config(data=data, task=task), tmp_path / "none", quiet)


def test_text_for_a_run_that_starts_from_another_is_in_its_vocabulary(corpus, tmp_path, quiet):
  c = config(corpus, data={"tokenizer": "train:400"}, model={"vocab_size": 400})
  saved = open_dataset(c, tmp_path / "first", quiet).tokenizer
  c = config(corpus, data={"tokenizer": "run"}, model={"vocab_size": 400})
  for _ in range(2):  # the first prepares it, the second opens it
    source = open_dataset(c, tmp_path / "second", quiet, tokenizer=saved)
    assert source.tokenizer.fingerprint == saved.fingerprint
  with pytest.raises(InputError, match="'run': no run yet; set config.train.start_from"):
    open_dataset(c, tmp_path / "third", quiet)


@pytest.mark.parametrize("warm", [{}, {**WARM, "growth": 1.5}])
def test_lanes_of_text_stand_beside_those_of_a_task(store, tmp_path, quiet, warm):
  data = {"path": str(store.folder), "carry_state": False, "lanes": 5, "segments": 2}
  task = {"name": "passkey", "text_lanes": 2, "text_weight": 3.0, "min_segments": 1}
  more = {"model": {"vocab_size": 264, "segment_length": 512}, "warm": warm}
  c = config(data=data, task=task, **more)
  source = open_training(c, tmp_path, quiet, None)
  assert source.tokenizer.fingerprint == store.tokenizer.fingerprint
  lanes = train_lanes(c, source)
  examples = TaskLanes(source.task, c.with_fields(data={"lanes": 3}))
  of_text = config(data={**data, "lanes": 2}, **more)
  documents = train_lanes(of_text, store)
  for k in (0, 1, 7):
    batch, first, last = lanes.batch(k), examples.batch(k), documents.batch(k)
    for name, rows in first.items():
      np.testing.assert_array_equal(batch[name][:3], rows, name)
    for name, rows in last.items():
      np.testing.assert_array_equal(batch[name][3:], rows, name)
    assert batch["text_B"].tolist() == [False] * 3 + [True] * 2
    assert not batch["asked_BT"][3:].any()
    np.testing.assert_allclose(batch["weights_BT"][3:].sum(1), 3.0, rtol=1e-5)
    assert not batch["weights_BT"][3:][~batch["mask_BT"][3:]].any()
    for rows in (slice(1, 4), np.array([4, 0]), slice(0, 2), slice(3, 5)):
      part = lanes.batch(k, rows)
      chosen = np.arange(5)[rows]
      assert all(np.array_equal(part[name], batch[name][chosen]) for name in batch)


def test_what_does_not_fit_is_refused(store, tmp_path, quiet):
  task = {"data": {"tokenizer": "task", "carry_state": False}, "task": {"name": "passkey"}}
  for c, match in (
    (config(), "config.data.path is empty"),
    (text_config(store, model={"vocab_size": 100}), "vocab_size=100 is smaller.*257 or more"),
    (config(model={"vocab_size": 9}, **task), "vocab_size=9 is smaller.*set it to 57 or more"),
  ):
    with pytest.raises(InputError, match=match) as error:
      open_dataset(c, tmp_path, quiet)
    assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="too short.*make it 67 tokens or more"):
    c = config(model={"vocab_size": 64}, **task)
    train_lanes(c, open_dataset(c, tmp_path, quiet))


def test_without_warm_memory_a_batch_has_nothing_of_it(store, tmp_path, quiet):
  for c in (
    text_config(store),
    config(
      data={"tokenizer": "task", "carry_state": False}, task={"name": "recall", "min_segments": 2,
      "pairs": 2},
    ),
  ):  # fmt: skip
    lanes = train_lanes(c, open_dataset(c, tmp_path, quiet))
    assert not [name for name in lanes.batch(3) if name.startswith("warm")]
    assert isinstance(lanes, TaskLanes | TrainLanes)


@pytest.mark.parametrize("carry_state", [True, False])
def test_documents_that_begin_may_start_warm_and_others_keep_their_state(store, carry_state):
  model = {"vocab_size": 264, "segment_length": 128}

  def make(segments=2, warm=None, **train):
    data = {"carry_state": carry_state, "segments": segments}
    c = text_config(store, model=model, data=data, warm=warm or {}, train=train)
    return train_lanes(c, store)

  plain, lanes, earlier = make(), make(warm=WARM), make(segments=3, seed=1)
  started = kept = anew = 0
  for k in range(150):
    batch, usual, read = lanes.batch(k), plain.batch(k), earlier.batch(k)
    for name in ("tokens_BT", "targets_BT", "mask_BT"):
      np.testing.assert_array_equal(batch[name], usual[name], f"{name}: warm memory moves the text")
    begins = usual["reset_BS"][:, 0]
    assert not (batch["warm_B"] & ~begins).any(), "a document that goes on keeps its own state"
    np.testing.assert_array_equal(batch["reset_BS"][:, 0], begins & ~batch["warm_B"])
    np.testing.assert_array_equal(batch["reset_BS"][:, 1:], usual["reset_BS"][:, 1:])
    np.testing.assert_array_equal(batch["warm_tokens_BT"], read["tokens_BT"])
    np.testing.assert_array_equal(batch["warm_mask_BT"], read["mask_BT"])
    assert batch["warm_reset_BS"].shape == (4, 3) and not batch["warm_reset_BS"][:, 1:].any()
    assert k > 0 or (batch["warm_reset_BS"][:, 0].all() and not batch["warm_B"].any())
    started += batch["warm_B"].sum()
    kept += (~begins).sum()
    anew += batch["warm_reset_BS"][:, 0].sum()
    part = lanes.batch(k, slice(1, 3))
    assert all(np.array_equal(part[name], batch[name][1:3]) for name in batch)
  assert started > 0 and anew > 4 and (kept > 0) == carry_state, "a weak test"
  grown = make(warm={**WARM, "growth": 1.5})
  times = np.array([grown.batch(k)["warm_times_B"] for k in range(20)])
  assert times.shape == (20, 4) and times.min() == 1 < times.max() and (times[0] == 1).all()
