"""Processes in step without a model: turns, lanes, stopping and a shared folder."""

import json
import signal
import threading

import jax
import pytest

from infini_jax.config import InputError, MeshConfig
from infini_jax.parallel import make_mesh
from infini_jax.processes import Anyone, PeerStopped, guard, together
from infini_jax.processes.ending import REASON
from tests.processes.conftest import free_port
from tests.processes.services import Service
from tests.processes.test_joining import SLURM


def test_a_single_process_never_waits():
  anyone = Anyone(make_mesh(MeshConfig()))
  assert [anyone(flag) for flag in (False, True, False)] == [False, True, False], "at once"
  with pytest.raises(jax.errors.JaxRuntimeError), guard():
    raise jax.errors.JaxRuntimeError("out of memory")


class OfProcess0(Service):
  """Process 0 has set some facts. It comes to a barrier, unless it has stopped."""

  def __init__(self, facts=None):
    super().__init__()
    self.facts, self.ended = facts, threading.Event()

  def blocking_key_value_get(self, key, milliseconds):
    return json.dumps(self.facts)

  def wait_at_barrier(self, name, milliseconds):
    if REASON in self.keys:
      self.ended.wait(60)


def as_process_1(monkeypatch, service):
  monkeypatch.setattr(together, "client", lambda: service)
  monkeypatch.setattr(together, "joined", lambda: True)
  monkeypatch.setattr(together, "process_index", lambda: 1)


def test_facts_that_differ_are_named_with_both_values(monkeypatch):
  facts = {"steps": "5", "width": "8", "only here": "x" * 300}
  as_process_1(monkeypatch, OfProcess0(facts))
  together.agree(facts, "start them alike")
  with pytest.raises(InputError) as error:
    together.agree({"steps": 5, "width": 16}, "start them alike")
  assert str(error.value) == (
    "width: process 0 has 8, process 1 has 16; "
    f"only here: process 0 has {'x' * 200}..., process 1 has nothing; start them alike"
  )
  apart = dict.fromkeys("abcde", 1)
  with pytest.raises(InputError, match="; and 5 more; start them alike$"):
    together.agree(apart, "start them alike")


def test_a_folder_that_only_process_0_sees_is_refused(monkeypatch, tmp_path):
  as_process_1(monkeypatch, OfProcess0({str(tmp_path): "made"}))
  monkeypatch.setattr(together, "SHOWS_SECONDS", 0)
  with pytest.raises(InputError, match="process 0 has made, process 1 has no made; --workdir must"):
    together.check_shared(tmp_path / "made")
  (tmp_path / "made").touch()
  together.check_shared(tmp_path / "made")


def test_a_process_does_not_wait_for_one_that_has_stopped(monkeypatch):
  service = OfProcess0()
  service.key_value_set(REASON, json.dumps([0, 75, "it was told to stop"]))
  as_process_1(monkeypatch, service)
  monkeypatch.setattr(together, "POLL_SECONDS", 0.01)
  default = signal.getsignal(signal.SIGTERM)
  with pytest.raises(PeerStopped, match="process 0 stopped: it was told to stop") as error:
    with together.first_alone("inputs"):
      pytest.fail("process 0 runs the body first")
  service.ended.set()
  assert error.value.status == 75 and signal.getsignal(signal.SIGTERM) == default


JOINED = """
import json, os, sys, time
import jax, numpy as np
from pathlib import Path
from infini_jax import processes
from infini_jax.config import InputError, MeshConfig
from infini_jax.parallel import local_rows, make_mesh, put_batch
from infini_jax.processes import together
number, folder = int(sys.argv[1]), Path(sys.argv[2])
assert processes.start(processes.settings(os.environ))
found = {"process": processes.process_index()}

with processes.first_alone("inputs"):
  if number == 0:
    time.sleep(1)
    (folder / "made").write_text("whole")
  found["made"] = (folder / "made").read_text()

whole = {"tokens_BT": np.arange(64, dtype=np.int32).reshape(4, 16)}
for sizes in ((2, 1, 4), (1, 1, 8), (1, 2, 4)):
  mesh = make_mesh(MeshConfig(*sizes))
  rows = local_rows(mesh, 4)
  with jax.set_mesh(mesh):
    batch = put_batch({k: v[rows] for k, v in whole.items()}, mesh, 4)["tokens_BT"]
    copy = jax.jit(lambda x: jax.reshard(x, jax.sharding.PartitionSpec()))(batch)
  found[str(sizes)] = rows.tolist()
  np.testing.assert_array_equal(np.asarray(copy), whole["tokens_BT"])

anyone = processes.Anyone(mesh)
found["stop"] = [anyone(number == 1 and call == 2) for call in range(6)]

together.SHOWS_SECONDS = 0
processes.check_shared(folder / "made")
(folder / "0").touch()
try:
  processes.check_shared(folder / f"{number}")
except InputError as error:
  found["refused"] = str(error).partition(": ")[2]
print(json.dumps(found), flush=True)
processes.finish()
"""


@pytest.mark.parametrize("cluster", ["", pytest.param("slurm", marks=pytest.mark.slow)])
def test_two_processes_agree(processes, tmp_path, cluster):
  """Turns, lanes, stopping and a shared folder."""
  port, both = free_port(), []
  step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
  for i in range(2):
    # Only the variables of srun. JAX finds the coordinator in the list of nodes.
    environ = {**SLURM, **step, "SLURM_PROCID": str(i), "JAX_COORDINATOR_PORT": str(port)}
    command = ("-c", JOINED, str(i), str(tmp_path))
    both.append(
      processes(command, i, 2, 8, None if cluster else port, **(environ if cluster else {}))
    )
  outputs = [process.communicate(timeout=100) for process in both]
  assert [p.returncode for p in both] == [0, 0], outputs
  found = [json.loads([x for x in out.splitlines() if x[:1] == "{"][0]) for out, _ in outputs]
  for number, f in enumerate(found):
    assert (f["process"], f["made"]) == (number, "whole")
    assert f["(2, 1, 4)"] == [[0, 1], [2, 3]][number], "only its own lanes"
    assert f["(1, 1, 8)"] == [0, 1, 2, 3], "the same lanes, other parts of T"
    assert f["(1, 2, 4)"] == [[0, 1], [2, 3]][number]
    assert f["stop"] == [False, False, False, True, False, False], "everywhere, one call late"
    assert f["refused"] == (
      "process 0 has 0, process 1 has no 1; --workdir must be on a file system of all hosts"
    )
  assert all("Traceback" not in err for _, err in outputs)
