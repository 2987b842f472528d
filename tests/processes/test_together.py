"""Processes in step without a model: turns, lanes, stopping and a shared folder."""

import json

import jax
import pytest

from infini_jax.config import MeshConfig
from infini_jax.parallel import make_mesh
from infini_jax.processes import Anyone, guard
from tests.processes.conftest import free_port
from tests.processes.test_joining import SLURM


def test_a_single_process_never_waits():
  anyone = Anyone(make_mesh(MeshConfig()))
  assert [anyone(flag) for flag in (False, True, False)] == [False, True, False], "at once"
  with pytest.raises(jax.errors.JaxRuntimeError), guard():
    raise jax.errors.JaxRuntimeError("out of memory")


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
