"""The slow test needs Beam: `make extra-beam`, then `.venv-beam/bin/python -m pytest -m slow`."""

import importlib.util
import json
import pickle

import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.data import prepare, prepare_with_beam
from infini_jax.data.sources import base
from infini_jax.data.store import beam
from tests.data.store.test_prepare import files

INSTALLED = importlib.util.find_spec("apache_beam") is not None


@pytest.fixture
def rows(tmp_path, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 3000)
  rows = [json.dumps({"text": f"document {i} " * 9, "sum": f"{i}"}) + "\n" for i in range(150)]
  (tmp_path / "all.jsonl").write_text("".join(rows))
  return f"jsonl:{tmp_path}/all.jsonl?summary=sum"


@pytest.fixture
def stand_in(monkeypatch):
  """A pipeline without Beam: what it makes is pickled and done, but for jobs with these numbers."""
  lost = set()

  def run(jobs, write, options, runner):
    for number, job in enumerate(jobs):
      work, job = pickle.loads(pickle.dumps((write, job)))
      if number not in lost:
        work(job)

  monkeypatch.setattr(beam, "_options", lambda runner, flags: None)
  monkeypatch.setattr(beam, "_run", run)
  return lost


def test_workers_write_the_store_of_one_machine(tmp_path, rows, quiet, stand_in):
  tokenizer = "train:300"
  given = (rows, tmp_path / "out", tokenizer)
  stand_in.update({2, 3})
  with pytest.raises(InputError, match=r"2 of \d corpus parts were not written.*the same paths"):
    prepare_with_beam("DirectRunner", [], *given, console=quiet)
  stand_in.clear()
  prepare_with_beam("DirectRunner", [], *given, console=quiet)
  prepare(rows, tmp_path / "one", tokenizer, console=quiet)
  assert files(tmp_path / "out") == files(tmp_path / "one")
  prepare_with_beam("DirectRunner", [], *given, console=quiet)
  assert files(tmp_path / "out") == files(tmp_path / "one")


def test_a_document_that_stops_a_worker_is_named(tmp_path, rows, quiet, stand_in):
  with (tmp_path / "all.jsonl").open("a") as file:
    file.write('{"text": 5}\n')
  with pytest.raises(InputError, match=r"all.jsonl:\d+: field 'text' holds int, not text"):
    prepare_with_beam("DirectRunner", [], rows, tmp_path / "out", "bytes", console=quiet)
  assert not (tmp_path / "out" / "store.json").exists()


def test_wrong_commands(tmp_path, rows, capsys):
  def refused(*flags):
    assert cli.main(["prepare", f"--source={rows}", f"--out={tmp_path}/out", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error

  assert "--runner= is empty: name a runner" in refused("--runner=")
  assert "--workers=2: is of this machine" in refused("--runner=DirectRunner", "--workers=2")
  if not INSTALLED:
    assert "apache-beam, in an environment of its own: make extra-beam" in refused("--runner=Any")
  else:
    assert "Beam has no such runner" in refused("--runner=Any")
    assert "Beam has no such runner" in refused("--runner=json.JSONDecoder")
    assert "unknown --regoin;" in refused("--runner=DirectRunner", "--regoin=x")
    assert "unknown word;" in refused("--runner=DirectRunner", "word")
    assert "invalid int value" in refused("--runner=DirectRunner", "--direct_num_workers=x")
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs apache-beam: make extra-beam")
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_the_local_runner_writes_the_store_of_one_machine(tmp_path, rows, quiet, mode):
  flags = [f"--direct_running_mode={mode}", "--direct_num_workers=2"]
  prepare_with_beam("DirectRunner", flags, rows, tmp_path / "out", "train:300", 20, quiet)
  prepare(rows, tmp_path / "one", "train:300", None, 20, quiet)
  assert files(tmp_path / "out") == files(tmp_path / "one")
  with (tmp_path / "all.jsonl").open("a") as file:
    file.write('{"text": 5}\n')
  with pytest.raises(InputError, match=r"all.jsonl:\d+: field 'text' holds int, not text"):
    prepare_with_beam("DirectRunner", flags, rows, tmp_path / "bad", "bytes", console=quiet)
