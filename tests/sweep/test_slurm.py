"""The script for Slurm: each task of the array trains its run; a stopped one is queued again."""

import re
import subprocess

import pytest

from infini_jax import cli
from infini_jax.sweep.slurm import script

RUNS = [["--config=a.py", "--config.model.width=8", "--workdir=out/width=8"]]
RUNS += [["--config=a.py", "--config.evaluation.document=it's $HOME", "--workdir=out/b c"]]


def task(tmp_path, number, status=0):
  """Runs one task of the array with stand-ins for srun and scontrol."""
  for name, body in (
    ("srun", f'printf "%s\\n" "$@"; exit {status}'),
    ("scontrol", 'echo "scontrol $@"'),
  ):
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)
  (tmp_path / "sweep.sbatch").write_text(script(RUNS, "out", "infini-jax sweep a.py\n--slurm"))
  env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "HOME": "/h"}
  env |= {"SLURM_CPUS_PER_TASK": "4", "SLURM_SUBMIT_DIR": str(tmp_path)}
  env |= {"SLURM_ARRAY_TASK_ID": str(number)}
  command = ["bash", tmp_path / "sweep.sbatch"]
  return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("number", range(2))
def test_a_task_trains_its_run(tmp_path, number):
  done = task(tmp_path, number)
  assert done.returncode == 0, done.stderr
  *_, command = done.stdout.partition("train\n")
  assert command.splitlines() == RUNS[number], "arguments stay whole, and nothing is expanded"


@pytest.mark.parametrize("status", [0, 1, 2, cli.STOPPED, 143])
def test_a_stopped_run_is_queued_again(tmp_path, status):
  done = task(tmp_path, 0, status)
  assert done.returncode == status
  assert ("scontrol requeue 17" in done.stdout) == (status in (cli.STOPPED, 143))


def test_the_array_has_one_task_for_each_run(tmp_path):
  assert re.search(r"^#SBATCH --array=0-1$", script(RUNS, "out", "x"), re.MULTILINE)
  assert task(tmp_path, 2).returncode == 2, "there is no third run"
