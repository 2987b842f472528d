"""All runs of a model in a process share its programs; the parameters are arguments of them."""

import numpy as np

from infini_jax.inference.engine import Engine
from infini_jax.inference.programs import programs_of
from tests.tiny import changed, config, fake_params


def test_a_second_run_of_a_model_compiles_nothing_and_has_its_own_parameters(rng):
  c = config(model={"rule": "delta", "vocab_size": 32, "width": 24})
  tokens = rng.integers(0, 32, (1, c.model.segment_length)).astype(np.int32)
  logits, programs = [], []
  for seed in (0, 1):
    engine = Engine(c, fake_params(c.model, seed), apart=False)
    stream = engine.read(engine.start(1), tokens)
    logits.append(np.asarray(engine.extend(stream, [[3, 4]])[0]))
    used = engine.programs.read, engine.programs.extend, engine.programs.start
    programs.append([program._cache_size() for program in used])
  assert programs[0] == programs[1] == [1, 1, 1], "compiled again: what is an argument differs"
  assert np.abs(logits[0] - logits[1]).max() > 1e-3, "the parameters of the first run are used"


def test_another_model_or_cut_of_the_loss_has_its_own():
  model = config(model={"width": 24}).model
  found = programs_of(model, 0)
  assert programs_of(config(model={"width": 24}).model, 0) is found, "equal sizes, equal programs"
  assert programs_of(model, 8) is not found
  assert programs_of(changed(model, rule="delta"), 0) is not found
