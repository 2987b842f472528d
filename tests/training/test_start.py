"""A run that starts from another one's parameters, with its vocabulary."""

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.training import loop
from tests.tiny import changed, quiet


def begin(c, workdir, base, **sections):
  """One step so small that the parameters stay what they were at the start."""
  still = {"learning_rate": 1e-12, "gate_learning_rate": 1e-12}
  sections = {"optimizer": still, "train": {"steps": 1, "start_from": str(base)}} | sections
  made = {name: changed(getattr(c, name), **fields) for name, fields in sections.items()}
  return loop.train(changed(c, **made), str(workdir), quiet())


def test_training_begins_with_the_parameters_of_another_run(trained, tmp_path):
  c, workdir, state = trained
  begun = begin(c, tmp_path / "run", workdir)
  close = lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=1e-6)
  jax.tree.map(close, begun.params, state.params)
  assert int(begun.step) == 1, "steps are counted anew"


def test_a_run_on_text_goes_on_as_one_on_a_task_in_its_own_tokens(trained, tmp_path):
  c, workdir, state = trained
  task = {"task": {"name": "passkey", "min_segments": 16}}
  data = {"data": {"carry_state": False, "segments": 20}}
  begun = begin(c, tmp_path / "run", workdir, **task, **data)
  close = lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=1e-6)
  jax.tree.map(close, begun.params, state.params)
  saved = (tmp_path / "run" / "tokenizer").iterdir()
  assert {f.name: f.read_bytes() for f in saved} == {
    f.name: f.read_bytes() for f in (workdir / "tokenizer").iterdir()
  }


def test_other_shapes_other_tokens_and_no_run_are_refused(trained, tmp_path):
  c, workdir, _ = trained
  with pytest.raises(
    InputError, match=r"w_k_DKE is \(2, 16, 2, 8\), this config's \(2, 32, 2, 8\)"
  ):
    begin(c, tmp_path / "run", workdir, model={"width": 32})
  with pytest.raises(InputError, match="blocks.attention.mixer.beta_H is .* config's missing"):
    begin(c, tmp_path / "run", workdir, model={"mixer": "local"})
  with pytest.raises(InputError, match="no run here; train first"):
    begin(c, tmp_path / "run", tmp_path / "nothing")
  with pytest.raises(InputError, match="in other tokens than the parameters know: prepare it"):
    begin(c, tmp_path / "run", workdir, data={"tokenizer": "train:320"})
  assert not (tmp_path / "run" / "run.json").exists()
