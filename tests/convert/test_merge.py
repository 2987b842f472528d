"""A merged run computes what the run with adapters computes, and has no low-rank adapters."""

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.convert.adapter import save
from infini_jax.convert.merge import merge
from infini_jax.inference import Session
from infini_jax.runs.workdir import Workdir
from tests.convert.reading import console, logits_of, params_of
from tests.convert.test_adapter import make
from tests.convert.test_memory import make_run


def test_adapters_become_part_of_the_weights(tmp_path, rng):
  """The memory's own adapters stay, with their scale, and so do its gates."""
  _, run = make(tmp_path, rng)
  merge(str(run), tmp_path / "merged", None, console())
  tokens_BT = rng.integers(0, 256, (2, 40))
  want_BTV, got_BTV = (logits_of(folder, tokens_BT) for folder in (run, tmp_path / "merged"))
  # Rounding of the weights: in all, for a few logits of some random models are ill-conditioned.
  assert np.linalg.norm(got_BTV - want_BTV) < 1e-5 * np.linalg.norm(want_BTV)
  (before, _, _), (after, params, _) = params_of(run), params_of(tmp_path / "merged")
  assert (before.adapters.rank, after.adapters.rank) == (3, 0)
  assert after.memory == before.memory and after.memory.adapter_rank == 2
  assert not [name for name in params["blocks"]["attention"] if name.startswith("lora_")]
  assert jax.tree.leaves(params["blocks"]["attention"]["mixer"])
  config = Workdir(tmp_path / "merged").config()
  assert config.train.part == "all" and not config.train.start_from
  assert len(Session.load(tmp_path / "merged").tokenizer.encode("abc")) == 3


def test_a_run_without_adapters_is_not_merged(tmp_path, rng):
  make_run(tmp_path / "run", rng)
  out = tmp_path / "merged"
  for call, match in (
    (lambda: merge(str(tmp_path / "run"), out, None, console()), "has no adapters to merge; use"),
    (lambda: merge(str(tmp_path / "none"), out, None, console()), "no run here"),
    (lambda: merge(str(tmp_path / "run"), tmp_path / "run", None, console()), "exists already"),
  ):
    with pytest.raises(InputError, match=match) as error:
      call()
    assert "\n" not in str(error.value) and not out.exists()


def test_the_card_of_an_adapter_says_how_it_is_used(tmp_path, rng):
  _, run = make(tmp_path, rng)
  save(str(run), tmp_path / "adapter", None, "float32", console())
  text = (tmp_path / "adapter" / "README.md").read_text()
  assert "infini-jax convert adapt ORIGINAL RUN --adapter=FOLDER" in text
  assert "| started from | original |" in text or "Nothing was trained" in text
  assert "Nothing was evaluated" in text and str(tmp_path) not in text
