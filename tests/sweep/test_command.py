"""`infini-jax sweep` and `compare`: planned, refused, and (slow) with real trainings."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax import cli
from infini_jax.config import load_config
from infini_jax.runs.metrics import FILE as METRICS
from infini_jax.runs.workdir import Workdir
from infini_jax.sweep.command import FILE
from infini_jax.sweep.local import Outcome
from tests import tiny
from tests.compiling import QUICKLY

ROOT = Path(__file__).parent.parent.parent
LAST = {"kind": "train", "step": 6, "loss": 1.25, "tokens_per_second": 9.0}
GRID = ("--grid", "optimizer.learning_rate=1e-3,3e-3")


@pytest.fixture
def file(tmp_path):
  sections = {**tiny.RUN, "data": {**tiny.RUN["data"], "path": str(tmp_path / "corpus")}}
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  return str(tmp_path / "config.py")


def refused(capsys, *command):
  assert cli.main([str(c) for c in command]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, "one line"
  return error


def test_the_printed_commands_train_the_combinations(file, tmp_path, capsys):
  out = tmp_path / "a sweep"
  command = ["sweep", file, f"--out={out}", *GRID, "--print", "--config.train.seed=7"]
  assert cli.main(command) == 0
  lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  assert [line[:2] for line in lines] == [["infini-jax", "train"]] * 2
  found = []
  for *arguments, workdir in (line[2:] for line in lines):
    c = load_config(arguments)
    found.append((c.optimizer.learning_rate, c.train.seed))
    assert workdir == f"--workdir={out}/learning_rate={c.optimizer.learning_rate}"
  assert found == [(1e-3, 7), (3e-3, 7)] and not out.exists()


def test_slurm_gets_a_script(file, tmp_path, capsys):
  assert cli.main(["sweep", file, f"--out={tmp_path / 'out'}", *GRID, "--slurm"]) == 0
  said = capsys.readouterr().out
  assert "#SBATCH --array=0-1" in said and f"--workdir={tmp_path}/out/learning_rate=0.003" in said
  assert subprocess.run(["bash", "-n"], input=said, text=True).returncode == 0


def test_wrong_inputs_are_refused_before_anything_is_trained(file, tmp_path, capsys):
  out = tmp_path / "out"
  sweep = ("sweep", file, f"--out={out}")
  assert "--grid is missing" in refused(capsys, *sweep)
  assert "must be more than 0" in refused(capsys, *sweep, "--grid", "model.width=8,0")
  assert "no such file" in refused(capsys, "sweep", tmp_path / "none.py", *sweep[2:], *GRID)
  assert "unknown argument" in refused(capsys, *sweep, *GRID, "--grids=1")
  assert not out.exists()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "notes.txt").touch()
  assert "holds other files" in refused(capsys, *sweep[:2], f"--out={tmp_path}/full", *GRID)
  c = load_config([f"--config={file}", "--config.optimizer.learning_rate=1e-2"])
  Workdir(tmp_path / "run").claim(c, "corpus")
  assert "holds a run" in refused(capsys, *sweep[:2], f"--out={tmp_path}/run", *GRID)
  assert "no run here" in refused(capsys, "compare", tmp_path / "full")


def test_a_folder_takes_one_sweep(file, tmp_path, capsys):
  out = tmp_path / "out"
  c = load_config([f"--config={file}", "--config.optimizer.learning_rate=1e-2"])
  Workdir(out / "learning_rate=0.01").claim(c, "corpus")
  (out / FILE).write_text(json.dumps({"fields": ["optimizer.learning_rate"]}))
  sweep = ("sweep", file, f"--out={out}")
  error = refused(capsys, *sweep, "--grid", "model.width=8,16")
  assert "a sweep of optimizer.learning_rate, not of model.width" in error
  error = refused(capsys, *sweep, *GRID, "--config.model.ffn=64")
  assert "other settings (config.model.ffn: 32 there, 64 here)" in error
  (out / FILE).write_text("{")
  assert f"{FILE}: cannot be read" in refused(capsys, *sweep, *GRID)


@pytest.mark.parametrize(
  "outcome,status,line",
  [
    (Outcome([], [], False), 0, "next: infini-jax compare"),
    (Outcome(["learning_rate=0.003"], [], False), 1, "1 of 2 runs failed: learning_rate=0.003"),
    (Outcome([], ["learning_rate=0.003"], False), 75, "the same command continues from there"),
    (Outcome([], [], True), 75, "the same command continues from there"),
  ],
)
def test_the_end_of_a_sweep_has_a_table_and_a_status(
  file, tmp_path, capsys, monkeypatch, outcome, status, line
):
  """The trainings are not started: the first run was trained before, the second was not."""

  def run_all(folder, runs, arguments, console):
    assert [run.name for run in runs] == ["learning_rate=0.001", "learning_rate=0.003"]
    trained = Workdir(folder / runs[0].name)
    trained.claim(runs[0].config, "corpus")
    (trained.path / METRICS).write_text(json.dumps(LAST))
    return outcome

  monkeypatch.setattr("infini_jax.sweep.local.run_all", run_all)
  out = tmp_path / "out"
  assert cli.main(["sweep", file, f"--out={out}", *GRID]) == status
  said = capsys.readouterr().out
  assert "1 run, the best training loss first" in said and "1.25" in said and line in said
  assert json.loads((out / FILE).read_text())["fields"] == ["optimizer.learning_rate"]
  assert cli.main(["compare", str(out)]) == 0
  assert "1.25" in capsys.readouterr().out
  assert "no run here, and none in a folder" in refused(capsys, "compare", tmp_path / "none")


@pytest.mark.slow
def test_a_sweep_trains_goes_on_and_compares(file, tmp_path):
  """One run fails; the others train, and are skipped by the next sweep, which has a new value."""
  tiny.write_corpus(tmp_path / "corpus")
  out = tmp_path / "out"

  def sweep(*more):
    command = [sys.executable, "-m", "infini_jax.cli", "sweep", file, f"--out={out}", *more]
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    more = {"cwd": ROOT, "env": env, "text": True, "capture_output": True}
    return subprocess.run(command, timeout=600, **more)

  missing = f"data.path={tmp_path / 'corpus'},{tmp_path / 'none'}"
  fixed = ("--config.mesh.data=1", "--grid", missing)
  done = sweep(*fixed, "--grid", "optimizer.learning_rate=1e-2")
  assert done.returncode == 1, done.stdout + done.stderr
  assert "1 of 2 runs failed: path=" in done.stdout and "no such folder" in done.stdout
  assert "step 6, loss" in done.stdout and "1 run, the best training loss first" in done.stdout
  done = sweep(*fixed[:2], f"data.path={tmp_path / 'corpus'}", "--grid",
               "optimizer.learning_rate=1e-2,1e-5")  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("finished before") == 1
  table = done.stdout[done.stdout.index("2 runs, the best training loss first") :]
  assert table.index("0.01") < table.index("1e-05"), "a rate that learns comes first"
  assert "learning_rate" in table and "width" not in table, "differences alone"
