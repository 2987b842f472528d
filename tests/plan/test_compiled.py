"""The step is compiled for devices, and its figures stand beside those of the estimate."""

import jax

from infini_jax.parallel.chips import CHIPS
from infini_jax.plan import report
from infini_jax.plan.compiled import compile_step, example_batch
from infini_jax.plan.estimate import estimate
from tests.plan.test_estimate import sizes
from tests.tiny import config, quiet

MESH = {"data": 1, "fsdp": 8}


def test_a_compiled_step_holds_the_state_and_sends_what_its_mesh_divides():
  c = config(mesh=MESH, model={"layers": 1})
  found = compile_step(c, jax.devices())
  made = estimate(c, sizes(**MESH), CHIPS["v5e"])
  held = sum(made.resting.values())
  assert found.fits and found.seconds > 0
  assert held < found.arguments < 1.2 * held, "the state, and a batch"
  parts = found.communication.parts
  assert parts and all(part.devices == 8 and part.bytes > 0 for part in parts)
  console = quiet()
  report.show_compiled(found, made, console)
  said = console.file.getvalue()
  for row in ("state and batch", "allocated for the step", "peak", "the compiled chip sends"):
    assert row in said, f"the table lacks {row!r}"
  assert all(part.kind in said for part in parts)


def test_the_batch_has_the_arrays_that_the_config_reads():
  names = lambda **sections: set(example_batch(config(**sections)))
  plain = {"tokens_BT", "targets_BT", "mask_BT", "reset_BS"}
  assert names() == plain
  task = {"data": {"tokenizer": "task", "carry_state": False, "segments": 6}}
  task |= {"task": {"name": "passkey", "min_segments": 5}, "model": {"vocab_size": 64}}
  assert names(**task) == plain | {"weights_BT", "asked_BT"}
  warm = {"share": 0.7, "segments": 2, "min_tokens": 32, "max_tokens": 400}
  read = {"warm_tokens_BT", "warm_mask_BT", "warm_reset_BS", "warm_B"}
  assert names(**task, warm=warm) == plain | {"weights_BT", "asked_BT"} | read
  grown = names(**task, warm=warm | {"growth": 1.5})
  assert grown - names(**task, warm=warm) == {"warm_times_B"}
