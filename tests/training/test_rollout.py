"""The rollout curriculum: growing segments, one compilation per stage, exact resumes."""

import shutil

import jax
import numpy as np
import pytest

from infini_jax.config import Config, original, stage_at, stages, tokens_read
from infini_jax.data import TrainLanes
from infini_jax.runs.metrics import read_metrics
from infini_jax.tasks import make_task, open_dataset, train_lanes
from infini_jax.training import loop
from infini_jax.training.trainable import split
from tests.tiny import changed, config, fake_params, quiet, write_original

ROLLOUT = {"rollout": (4, 8), "rollout_steps": 3, "steps": 20}


def same(a, b):
  compare = lambda x, y: np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))
  jax.tree.map(compare, a, b)


def test_every_step_belongs_to_one_stage():
  c = config(train=ROLLOUT)
  assert [stage_at(c, k).config.model.segment_length for k in (0, 2, 3, 5, 6, 19)] == [
    *(4, 4, 8, 8, 16, 16)
  ]
  assert [stage.first for stage in stages(c)] == [0, 3, 6]
  assert len({stage.config.train.seed for stage in stages(c)}) == 3, "each reads in its own order"
  assert stages(Config()) == ((0, Config()),)
  lengths = [stage_at(c, k).config.model.segment_length for k in range(9)]
  read = [c.data.lanes * c.data.segments * sum(lengths[:k]) for k in range(10)]
  assert [tokens_read(c, k) for k in range(10)] == read


def test_documents_are_distributed_anew_in_every_stage(texts, tmp_path):
  c = config(texts, train=ROLLOUT)
  store = open_dataset(c, tmp_path, quiet())
  lanes = train_lanes(c, store)
  for k in (0, 2, 3, 5, 6, 11):
    first, here = stage_at(c, k)
    N = here.model.segment_length
    alone = TrainLanes(
      store.split("train"), bos=store.tokenizer.bos, eos=store.tokenizer.eos, lanes=c.data.lanes,
      segments=c.data.segments, segment_length=N, seed=here.train.seed,
    )  # fmt: skip
    batch = lanes.batch(k)
    assert batch["tokens_BT"].shape == (c.data.lanes, c.data.segments * N)
    same(batch, alone.batch(k - first))
    if k == first:
      assert batch["reset_BS"][:, 0].all(), "a carried state is of the stage before"
    same(lanes.batch(k, slice(2, 5)), {name: rows[2:5] for name, rows in batch.items()})


def test_a_task_is_asked_in_every_stage_and_companions_begin_anew():
  c = config(
    model={"vocab_size": 64, "segment_length": 32},
    data={"tokenizer": "task", "carry_state": False, "segments": 6},
    task={"name": "passkey", "min_segments": 5},
    warm={"share": 0.7, "segments": 2, "min_tokens": 64, "max_tokens": 300, "start_step": 4},
    train={"rollout": (16,), "rollout_steps": 3, "steps": 20},
  )
  lanes = train_lanes(c, make_task(c, "passkey"))
  for k in range(8):
    batch, N = lanes.batch(k), 16 if k < 3 else 32
    assert batch["tokens_BT"].shape == (c.data.lanes, 6 * N)
    assert batch["warm_tokens_BT"].shape == (c.data.lanes, 2 * N)
    assert batch["asked_BT"].any(1).all()
    if k in (0, 3):
      assert batch["warm_reset_BS"][:, 0].all(), "what a companion read is of the stage before"
    assert batch["warm_B"].any() == (k >= 4), "config.warm.start_step counts all steps"


def test_a_run_goes_through_its_stages(adapted):
  c, workdir, state = adapted
  frozen = jax.tree.leaves(split(c, fake_params(original(c.model)))[1])
  assert len(frozen) > 5, "the feed-forward, the norms and the embedding"
  same(jax.tree.leaves(split(c, state.params)[1]), frozen)
  lines = read_metrics(workdir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert all(line["distillation"] > 0 for line in lines)
  assert state.memory.M_BKEU.shape[-2:] == (c.model.head_dim, c.model.head_dim)
  flops = [line["model_flops_per_second"] / line["tokens_per_second"] for line in lines]
  assert flops[0] == pytest.approx(flops[1]) and flops[3] > flops[0], "segments are not longer"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_in_or_between_stages_changes_nothing(adapted, tmp_path, stop):
  """Bit by bit: parameters, moments and memory. The teacher is read again from its run."""
  c, workdir, straight = adapted
  shutil.copytree(workdir, tmp_path / "run")
  for step in range(stop + 1, 5):
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  same(loop.train(c, str(tmp_path / "run"), quiet()), straight)


@pytest.mark.slow
def test_passkeys_are_learned_through_stages(tmp_path):
  c = config(
    model={"vocab_size": 64, "gate_init": -5.0},
    data={"tokenizer": "task", "carry_state": False, "segments": 12},
    task={"name": "passkey", "min_segments": 10},
    train={"rollout": (8,), "rollout_steps": 2, "steps": 4, "part": "gates"},
  )
  c = changed(c, train=changed(c.train, start_from=str(tmp_path / "original")))
  write_original(tmp_path / "original", c, make_task(c, "passkey").tokenizer)
  loop.train(c, str(tmp_path / "run"), quiet())
  lines = read_metrics(tmp_path / "run")
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert all(0 <= line["answer_accuracy"] <= 1 for line in lines)


@pytest.mark.slow
def test_a_pattern_goes_through_stages_with_a_teacher_and_on_to_the_bit(texts, tmp_path):
  run = str(tmp_path / "original")
  c = config(
    texts,
    model={"kv_heads": 1, "pattern": ("infini", "full")},
    infini={"gate_init": -5.0},
    data={"carry_state": False},
    mesh={"data": 2, "fsdp": 2, "tensor": 1, "dcn": 2},
    optimizer={"ema": 0.5},
    train={"start_from": run, "distill_weight": 0.5, "steps": 4, "checkpoint_every": 1}
    | {"rollout": (8,), "rollout_steps": 2, "keep_checkpoints": 9},
  )
  write_original(tmp_path / "original", c)
  straight = loop.train(c, str(tmp_path / "run"), quiet())
  lines = read_metrics(tmp_path / "run")
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert all(line["distillation"] > 0 for line in lines)
  flops = [line["model_flops_per_second"] / line["tokens_per_second"] for line in lines]
  assert flops[3] > flops[0], "segments are not longer"
  for step in (3, 4):  # the third is the first of the second stage
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  same(loop.train(c, str(tmp_path / "run"), quiet()), straight)
