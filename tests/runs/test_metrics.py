import errno
import json
import logging
import resource
import sys
from types import SimpleNamespace

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from infini_jax.runs import tensorboard
from infini_jax.runs.metrics import MetricWriter, read_metrics
from tests.tiny import changed, config


def test_lines_are_appended_and_read_back(tmp_path):
  for step in (1, 2):  # the second time as a continued run
    writer = MetricWriter(tmp_path / "run", config(), step - 1)
    writer.write(step, {"loss": 1.5, "gates_LH": [0.1, 0.9], "mfu": None})
    writer.write(step, {"perplexity": 3.0}, "validation")
    writer.close()
  train = read_metrics(tmp_path / "run")
  line = {"step": 1, "kind": "train", "loss": 1.5, "gates_LH": [0.1, 0.9], "mfu": None}
  assert train == [line, {**line, "step": 2}]
  assert [line["perplexity"] for line in read_metrics(tmp_path / "run", "validation")] == [3.0] * 2


def test_lines_of_a_killed_process_after_its_checkpoint_are_removed(tmp_path):
  line = lambda step, kind: json.dumps({"step": step, "kind": kind, "loss": 0.1 + step}) + "\n"
  before = line(1, "train") + line(2, "train") + line(2, "validation")
  file = tmp_path / "metrics.jsonl"
  for left in ("", line(3, "train") + line(4, "validation"), line(3, "train")[:9]):
    file.write_text(before + left)
    writer = MetricWriter(tmp_path, config(train={"tensorboard": True}), 2)
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in map(json.loads, file.read_text().splitlines())] == [1, 2, 2, 3]
    assert file.read_text().startswith(before), "what stays is written as it was"
  events = b"".join(f.read_bytes() for f in (tmp_path / "tensorboard").iterdir())
  purged = Event(step=3, session_log=SessionLog(status=SessionLog.START)).SerializeToString()
  assert purged in events, "TensorBoard would draw steps 3 and 4 twice"


def test_a_full_disk_stops_no_curve_and_keeps_its_points(tmp_path, monkeypatch, caplog):
  """More points than a queue would hold; the file after the failure has all of them."""
  write, room = EventsWriter.flush, {"left": False}

  def flush(self):
    if not room["left"]:
      raise OSError(errno.ENOSPC, "No space left on device")
    return write(self)

  monkeypatch.setattr(EventsWriter, "flush", flush)
  monkeypatch.setattr(tensorboard, "EACH", 0)
  curves = tensorboard.TensorBoard(tmp_path / "tensorboard", 1)
  for step in range(1, 50):
    curves.scalar(f"loss/{step}", 1.0, step)
    curves.histogram("gates", [0.5, 0.5], step)
  assert caplog.text.count("its curves are kept until there is room") == 1
  room["left"] = True
  curves.close()
  newest = max((tmp_path / "tensorboard").iterdir(), key=lambda file: file.name)
  assert all(f"loss/{step}".encode() in newest.read_bytes() for step in range(1, 50))


def test_wandb_goes_on_in_the_same_run_and_begins_another_at_step_0(tmp_path, monkeypatch):
  begun, logged = [], []

  def init(**how):
    begun.append(how)
    log = lambda values, step: logged.append((how["id"], step, values))
    return SimpleNamespace(log=log, finish=lambda: None)

  monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
  monkeypatch.delenv("WANDB_RUN_ID", raising=False)
  c = config(train={"tensorboard": False})
  c = changed(c, log=changed(c.log, wandb=True))
  for step in (0, 2, 4, 0):
    writer = MetricWriter(tmp_path, c, step)
    writer.write(step + 1, {"loss": 1.0, "gates_LH": [[0.25, 0.75]]})
    writer.close()
  first, second, third, anew = (how["id"] for how in begun)
  assert first == second == third != anew and len({first, anew}) == 2
  assert all(how["resume"] == "allow" and how["dir"] == str(tmp_path) for how in begun)
  assert begun[0]["config"] == json.loads(c.to_json()) and begun[1]["allow_val_change"]
  gates = {"gates/layer_1/head_1": 0.25, "gates/layer_1/head_2": 0.75}
  values = {"train/loss": 1.0, "train/gates_LH": [[0.25, 0.75]], **gates}
  assert logged[0] == (first, 1, values)
  monkeypatch.setenv("WANDB_RUN_ID", "mine")
  MetricWriter(tmp_path, c, 4).close()
  assert begun[-1]["id"] == "mine", "a person's own name of the run counts"


def test_an_incomplete_last_line_and_a_missing_file_are_no_errors(tmp_path):
  assert read_metrics(tmp_path) == []
  whole = json.dumps({"step": 1, "kind": "train", "loss": 1.0})
  (tmp_path / "metrics.jsonl").write_text(whole + "\n" + whole[:10])
  assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  writer = MetricWriter(tmp_path, config(), 0)
  writer.write(1, {"loss": 1.0})
  assert len(read_metrics(tmp_path)) == 1
  writer.close()


def test_tensorboard_gets_scalars_and_histograms(tmp_path):
  writer = MetricWriter(tmp_path, config(train={"tensorboard": True}), 0)
  gates = {"memory_L": [0.1, 0.2], "gates_LH": [[0.1, 0.2], [0.3, 0.4]]}
  writer.write(1, {"loss": 1.0, "gate_histogram": [[2, 0], [0, 2]], "mfu": None, **gates})
  writer.close()
  content = b"".join(f.read_bytes() for f in (tmp_path / "tensorboard").iterdir())
  assert b"train/loss" in content and b"train/memory_L" in content
  assert b"train/gates_LH/1" in content and b"train/gates_LH/2" in content, "one for each layer"
  assert all(f"gates/layer_{i}/head_{j}".encode() in content for i in (1, 2) for j in (1, 2))
  assert b"config/text_summary" in content and b'"segment_length": 16,' in content
  assert b"gate_histogram" not in content, "counts are no values to make a histogram of"
  assert b"mfu" not in content


def test_lines_that_a_full_disk_does_not_take_are_written_when_there_is_room(tmp_path, caplog):
  writer = MetricWriter(tmp_path, config(log={"tensorboard": False}), 0)
  writer.write(1, {"loss": 1.0})
  size = (tmp_path / "metrics.jsonl").stat().st_size
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, most))  # as if the disk ended there
  try:
    with caplog.at_level(logging.WARNING, logger="infini_jax"):
      for step in (2, 3):
        writer.write(step, {"loss": 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  assert (tmp_path / "metrics.jsonl").stat().st_size == size, "no part of a line"
  (line,) = [r.getMessage() for r in caplog.records if r.name == "infini_jax"]
  assert "metrics.jsonl: cannot be written" in line
  writer.write(4, {"loss": 1.0})
  writer.close()
  assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
