"""`infini-jax verify`, and what the next start does with damaged files of a run."""

import logging
import shutil

import numpy as np
import pytest

from infini_jax.cli import main
from infini_jax.config import InputError
from infini_jax.inference import Session
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir


@pytest.fixture
def run(trained, tmp_path):
  """A copy of a run with checkpoints of steps 3 and 6."""
  return shutil.copytree(trained[1], tmp_path / "run")


def damage(run, step, part="params"):
  """Changes one byte of the largest file of a part."""
  folder = run / "checkpoints" / str(step) / part
  file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def verified(run, capsys):
  status = main(["verify", str(run)])
  return status, " ".join(capsys.readouterr().out.split())


def test_a_whole_run_is_verified(run, capsys):
  status, text = verified(run, capsys)
  assert status == 0
  for part in ("run.json", "tokenizer", "checkpoints/3", "checkpoints/6", "store: train/00000"):
    assert f"{part} │ whole" in text, f"{part} is not verified"


@pytest.mark.parametrize("part", ["params", "rest"])
def test_a_damaged_checkpoint_is_named_and_the_others_are_whole(run, capsys, part):
  damage(run, 6, part)
  status, text = verified(run, capsys)
  assert status == 1
  assert f"checkpoints/6 │ {part}/" in text and "other bytes than were written" in text
  assert "checkpoints/3 │ whole" in text


def test_damaged_stores_and_tokenizers_are_named(run, capsys):
  index = next((run / "store" / "train").glob("*.npz"))
  data = bytearray(index.read_bytes())
  data[data.index(b"\x93NUMPY") + 128] ^= 255  # the first byte of an array's content
  index.write_bytes(data)
  status, text = verified(run, capsys)
  assert status == 1 and "missing or damaged" in text


def test_training_continues_from_the_checkpoint_before_a_damaged_one(run):
  damage(run, 6, "rest")
  said = []
  with Checkpoints(Workdir(run)) as saved:
    assert saved.newest_whole(said.append) == 3
    assert saved.latest() == 3
  (line,) = said
  assert "checkpoints/6: damaged (rest/" in line and "step 3 is used instead" in line
  assert (run / "damaged" / "6").is_dir(), "it is kept"


def test_without_a_whole_checkpoint_nothing_is_moved(run):
  for step in (3, 6):
    damage(run, step)
  with (
    Checkpoints(Workdir(run)) as saved,
    pytest.raises(InputError, match="every checkpoint is damaged .*put copies there, or train in"),
  ):
    saved.newest_whole(print)
  assert not (run / "damaged").exists()
  assert {f.name for f in (run / "checkpoints").iterdir()} >= {"3", "6"}


def test_readers_take_the_checkpoint_before_and_say_so(run, trained, caplog):
  damage(run, 6)
  with caplog.at_level(logging.WARNING, logger="infini_jax"):
    session = Session.load(run)
  assert session.run.step == 3
  (line,) = [r.getMessage() for r in caplog.records if r.name == "infini_jax"]
  assert "checkpoints/6: damaged" in line and "step 3 is used instead" in line
  assert (run / "checkpoints" / "6").is_dir(), "a reader moves nothing"
  with pytest.raises(InputError, match="damaged .*choose another step of 3, 6"):
    Session.load(run, step=6)


def test_damage_of_the_optimizer_does_not_stop_readers(run):
  damage(run, 6, "rest")
  assert Session.load(run).run.step == 6


def test_an_edited_run_json_and_another_tokenizer_are_refused(run, capsys):
  file = run / "run.json"
  text = file.read_text()
  file.write_text(text.replace('"layers": 2', '"layers": 3'))
  with pytest.raises(InputError, match="run.json: damaged or edited; .*remove its field sha256"):
    Workdir(run).config()
  file.write_text(text)
  (found,) = (run / "tokenizer").glob("tokenizer.*")
  found.unlink()
  (run / "tokenizer" / "tokenizer.words.json").write_text('["a", "b"]')
  with pytest.raises(InputError, match="not the vocabulary of this run"):
    Session.load(run)
  status, text = verified(run, capsys)
  assert status == 1 and "not the vocabulary of this run" in text


def test_states_and_other_files(run, tmp_path, capsys):
  session = Session.load(run)
  session.read("a text")
  session.save(tmp_path / "a.state")
  assert verified(tmp_path / "a.state", capsys)[0] == 0
  data = bytearray((tmp_path / "a.state").read_bytes())
  data[-1] ^= 1
  (tmp_path / "a.state").write_bytes(data)
  status, text = verified(tmp_path / "a.state", capsys)
  assert status == 1 and "checksum is wrong" in text
  assert main(["verify", str(tmp_path / "none")]) == 2
  (tmp_path / "empty").mkdir()
  assert main(["verify", str(tmp_path / "empty")]) == 2


def test_older_runs_have_no_digests_and_are_read(run, capsys):
  for file in run.rglob("digests.json"):
    file.unlink()
  status, text = verified(run, capsys)
  assert status == 0 and "checkpoints/6 │ not sealed: an older program wrote it" in text
  assert np.isfinite(Session.load(run).run.step)
