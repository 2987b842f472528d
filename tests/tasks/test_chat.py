"""Conversations in lanes: whole, in order, and only what the assistant says has a weight."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.runs.metrics import read_metrics
from infini_jax.tasks import open_dataset, train_lanes
from infini_jax.tasks.chat import packed
from infini_jax.training.loop import train
from tests.data.chat.vocabulary import assistant, user
from tests.tiny import changed, config, quiet

N = 16


def conversations(rng, count, longest=60):
  text = lambda most: "".join(rng.choice(list("abcdef "), rng.integers(1, most))) + "."
  rows = []
  for _ in range(count):
    messages = [user(text(longest)), assistant(text(8))]
    rows.append({"messages": messages * int(rng.integers(1, 3))})
  return rows


def settings(folder, rows, **sections):
  """A config on these conversations, all of them for training."""
  for split in ("train", "validation", "test"):
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text("".join(lines))
  given = {"chat": {"template": "plain"}, **sections}
  return config(
    f"jsonl:{folder}/*.jsonl",
    task={"name": "chat"},
    model={"segment_length": N},
    **{"data": {"lanes": 4, "segments": 16, "carry_state": False}, **given},
  )


def opened(c):
  said = Console(file=io.StringIO(), width=200)
  source = open_dataset(c, None, said)
  return source, said.file.getvalue()


def check_resumes(config, run, made):
  """Training goes on from step 3 of 6 to the same parameters and memory, to the bit."""
  shutil.rmtree(run / "checkpoints" / "6")  # as if it had been killed after step 3
  again = train(config, str(run), quiet())
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(*jax.device_get((a, b))),
    (again.params, again.memory),
    (made.params, made.memory),
  )


def units(lanes, batches):
  """The inputs, targets and weights of every conversation in some batches, lane by lane."""
  found = []
  for lane in range(lanes.lanes):
    open_now = None
    for k in range(batches):
      batch = lanes.batch(k, slice(lane, lane + 1))
      for s in range(lanes.segments):
        at = slice(s * N, (s + 1) * N)
        mask = batch["mask_BT"][0, at]
        if batch["reset_BS"][0, s]:
          open_now = None
        if not mask.any():
          continue
        if open_now is None:
          found.append(open_now := ([], [], []))
        for kept, name in zip(open_now, ("tokens_BT", "targets_BT", "weights_BT"), strict=True):
          kept += batch[name][0, at][mask].tolist()
  return found


@pytest.mark.parametrize("carry", [False, True])
def test_every_conversation_is_read_whole_and_only_answers_count(tmp_path, rng, carry):
  rows = conversations(rng, 9)
  data = {"lanes": 4, "segments": 16 if not carry else 3, "carry_state": carry}
  source, _ = opened(settings(tmp_path, rows, data=data))
  lanes = train_lanes(settings(tmp_path, rows, data=data), source)
  talks = [source.chat.talks(row["messages"])[0] for row in rows]
  expected = {
    (tuple(talk.ids[:-1]), tuple(talk.ids[1:]), tuple(talk.said[1:].astype(float)))
    for talk in talks
  }
  found = units(lanes, 40)
  whole = [tuple(map(tuple, one)) for one in found]
  assert expected <= set(whole)
  if not carry:
    assert set(whole) == expected
  for one in whole:  # the last of a lane may go on in the next batch
    assert any(all(o[: len(w)] == w for o, w in zip(other, one, strict=True)) for other in expected)


def test_lanes_are_a_pure_function_of_the_batch_and_rows(tmp_path, rng):
  rows = conversations(rng, 9)
  for carry in (False, True):
    c = settings(tmp_path, rows, data={"lanes": 4, "segments": 16, "carry_state": carry})
    lanes = train_lanes(c, opened(c)[0])
    whole = lanes.batch(5)
    assert np.array_equal(whole["asked_BT"], whole["weights_BT"] == 1)
    for name, part in lanes.batch(5, np.array([1, 3])).items():
      assert np.array_equal(part, whole[name][[1, 3]])
      assert np.array_equal(whole[name], train_lanes(c, opened(c)[0]).batch(5)[name])


def test_an_epoch_reads_every_row_once(tmp_path, rng):
  data = {"lanes": 1, "segments": 16, "carry_state": False}
  c = settings(tmp_path, conversations(rng, 12), data=data)
  source, _ = opened(c)
  lanes, count = train_lanes(c, source), len(source.split("train"))
  rows = len(lanes._rows)
  assert len(units(lanes, rows)) == count


def test_packing_wastes_little_and_keeps_everything(rng):
  for _ in range(20):
    room = int(rng.integers(1, 12))
    sizes = rng.integers(1, room + 1, rng.integers(1, 60)).tolist()
    rows = packed(sizes, room)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= room for row in rows)
    assert len(rows) <= 2 * -(-sum(sizes) // room)


def test_long_conversations_are_refused_cut_or_left_out_and_counted(tmp_path, rng):
  long = [user("START " + "x" * 400 + " Who?"), assistant("Ann.")]
  rows = [{"messages": [user("Who?"), assistant("Ann.")]}, {"messages": long}]
  few = {"lanes": 4, "segments": 8, "carry_state": False}  # 129 tokens
  chat = lambda how: {"template": "plain", "too_long": how}
  with pytest.raises(InputError, match="train.jsonl, line 2: the conversation has 4.. tokens, and"):
    opened(settings(tmp_path, rows, data=few, chat=chat("refuse")))
  source, said = opened(settings(tmp_path, rows, data=few, chat=chat("leave_out")))
  assert len(source.split("train")) == 1 and "1 left out as too long" in said
  source, said = opened(settings(tmp_path, rows, data=few, chat=chat("cut")))
  assert source.split("train").counts.cut == 1 and "; 1 cut" in said
  cut = source.split("train")
  text = ByteTokenizer().decode(cut.read(1, 0, 500))
  assert cut.tokens[1] <= 128 and "START x" in text and "x Who?" in text and "Ann." in text
  carried = {"lanes": 4, "segments": 8, "carry_state": True}
  source, _ = opened(settings(tmp_path, rows, data=carried, chat=chat("refuse")))
  assert source.split("train").tokens.max() > 400
  most = chat("cut") | {"max_tokens": 100}
  source, _ = opened(settings(tmp_path, rows, data=carried, chat=most))
  assert source.split("train").tokens.max() < 100


def test_an_answer_is_never_cut(tmp_path):
  rows = [{"messages": [user("Who?"), assistant("y" * 400)]}]
  few = {"lanes": 4, "segments": 8, "carry_state": False}
  c = settings(tmp_path, rows, data=few, chat={"template": "plain", "too_long": "cut"})
  source, said = opened(c)
  assert "0 conversations" in said and "1 left out as too long" in said
  with pytest.raises(InputError, match="no conversations for train"):
    train_lanes(c, source)


def test_the_last_answer_of_a_conversation_is_asked(tmp_path):
  rows = [{"messages": [user("One?"), assistant("First"), user("Two?"), assistant("Second")]}]
  source, _ = opened(settings(tmp_path, rows))
  prompt, answer = source.split("train").last(0)
  assert ByteTokenizer().decode(answer) == "Second" and answer[-1] == ByteTokenizer.eos
  assert ByteTokenizer().decode(prompt).endswith("Two?\n\nassistant:\n")


@pytest.mark.parametrize(
  "row, said",
  [
    ({"messages": [{"role": "bot", "content": "x"}]}, "line 1: message 1: unknown role 'bot'"),
    ({"messages": [user("a"), assistant("")]}, "line 1: message 2: the answer is empty"),
    ({"messages": [user("a")]}, "line 1: the conversation has no message of the assistant"),
    ({"messages": [user("a <|document|>"), assistant("b")]}, "line 1: message 1: holds"),
  ],
)
def test_wrong_conversations_are_named_by_file_and_line(tmp_path, row, said):
  with pytest.raises(InputError, match=f"train.jsonl, {said}"):
    opened(settings(tmp_path, [row]))


def test_a_vocabulary_without_a_template_is_refused(tmp_path, rng):
  c = settings(tmp_path, conversations(rng, 2), chat={"template": "own"})
  with pytest.raises(
    InputError, match="comes with no chat template; set config.chat.template='plain'"
  ):
    opened(c)


def test_conversations_train_no_vocabulary(tmp_path, rng):
  c = settings(tmp_path, conversations(rng, 2))
  c = changed(c, data=changed(c.data, tokenizer="train:300"))
  with pytest.raises(InputError, match="tokenizer='train:300' of the task chat: conversations tr"):
    opened(c)
  open_dataset(c, None, quiet(), tokenizer=ByteTokenizer())  # of the run that it starts from


def test_other_conversations_or_another_template_are_another_run(tmp_path, rng):
  rows = conversations(rng, 3)
  first = opened(settings(tmp_path, rows))[0].fingerprint
  assert opened(settings(tmp_path, rows))[0].fingerprint == first
  assert opened(settings(tmp_path, rows[:2]))[0].fingerprint != first
  other = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
  assert opened(settings(tmp_path, rows, chat={"template": other}))[0].fingerprint != first


@pytest.mark.slow
@pytest.mark.parametrize("carry", [False, True])
def test_a_run_on_conversations_is_the_same_on_a_mesh_and_goes_on_to_the_bit(tmp_path, rng, carry):
  data = {"lanes": 8, "segments": 16, "carry_state": carry}
  c = settings(
    tmp_path,
    conversations(rng, 40),
    data=data,
    train={"checkpoint_every": 3, "steps": 6},
    mesh={"data": 2, "fsdp": 2, "tensor": 2},
  )
  run = tmp_path / "run"
  whole = train(c, str(run), quiet())
  losses = [line["loss"] for line in read_metrics(run)]
  plain = changed(c, mesh=changed(c.mesh, data=8, fsdp=1, tensor=1))
  train(plain, str(tmp_path / "plain"), quiet())
  beside = [line["loss"] for line in read_metrics(tmp_path / "plain")]
  np.testing.assert_allclose(losses, beside, rtol=2e-5, err_msg="the mesh changes the numbers")
  check_resumes(c, run, whole)
