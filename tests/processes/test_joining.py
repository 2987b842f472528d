"""The settings for joining other processes, and the messages for wrong ones."""

import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.processes.joining import Settings, settings
from tests import tiny

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NODELIST": "n[1-4]",
  "SLURM_STEP_NUM_NODES": "4",
}


@pytest.mark.parametrize(
  "environ,expected",
  [
    ({}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script
    ({**SLURM, "SLURM_NTASKS": "1"}, None),
    (SLURM, Settings()),
    ({**SLURM, "SLURM_GPUS_ON_NODE": "2"}, Settings(local_devices=(0, 1))),
    ({**SLURM, "SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_NUM_NODES": "2"}, Settings()),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "INFINI_PEER_TIMEOUT": "9"}, Settings(peer_timeout=9)),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "INFINI_JOIN_TIMEOUT": "8"}, Settings(join_timeout=8)),
    ({"MEGASCALE_NUM_SLICES": "1", "TPU_WORKER_HOSTNAMES": "a"}, None),
    ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, Settings()),
    ({"INFINI_PROCESSES": "auto"}, Settings()),
    (
      {"INFINI_COORDINATOR": "a:80", "INFINI_PROCESSES": "3", "INFINI_PROCESS": "0", **SLURM},
      Settings("a:80", 3, 0),
    ),
    ({"INFINI_COORDINATOR": "a:80", "INFINI_PROCESSES": "1", "INFINI_PROCESS": "0"}, None),
  ],
  ids=str,
)
def test_settings_follow_from_the_environment(environ, expected):
  assert settings(environ) == expected


def test_flags_count_before_variables():
  environ = {"INFINI_COORDINATOR": "a:80", "INFINI_PROCESSES": "3", "INFINI_PROCESS": "0"}
  assert settings(environ, None, None, "2") == Settings("a:80", 3, 2)
  assert settings({}, "[::1]:80", "3", "2") == Settings("[::1]:80", 3, 2)


@pytest.mark.parametrize(
  "given,error",
  [
    (("a:80", None, None), "without --processes or INFINI_PROCESSES: give --coordinator=HOST:PORT"),
    ((None, "2", "0"), "--processes=2 was given without --coordinator or INFINI_COORDINATOR"),
    (("a:80", "auto", None), "without --process or INFINI_PROCESS"),
    (("a", "2", "0"), "--coordinator=a: give HOST:PORT"),
    (("a:99999", "2", "0"), "--coordinator=a:99999: give HOST:PORT"),
    (("a:80", "two", "0"), "--processes=two: give a whole number from 1 on"),
    (("a:80", "auto", "0"), "--processes=auto: give a whole number from 1 on"),
    (("a:80", "0", "0"), "--processes=0: give a whole number from 1 on"),
    (("a:80", "2", "-1"), "--process=-1: give a whole number from 0 on"),
    (("a:80", "2", "2"), "--process=2: processes are numbered from 0 to 1"),
  ],
  ids=str,
)
def test_wrong_settings_are_named_with_the_remedy(given, error):
  with pytest.raises(InputError) as raised:
    settings({}, *given)
  assert error in str(raised.value) and "\n" not in str(raised.value)


def test_wrong_timeouts_are_refused():
  with pytest.raises(InputError, match="INFINI_PEER_TIMEOUT=soon: give a whole number"):
    settings({"INFINI_PEER_TIMEOUT": "soon"})


def test_the_command_refuses_wrong_settings(tmp_path, capsys):
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=tiny.RUN))
  command = ["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
  assert cli.main([*command, "--processes=2"]) == 2
  assert "--processes=2 was given without" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
