"""Parts of a state by their memory systems: of one system, and of a pattern."""

import jax
import numpy as np

from infini_jax.models import bind
from infini_jax.models.mixers import MIXERS
from infini_jax.models.states import auxiliary, has_one_size, reserve, with_memory_of
from tests.tiny import array, fake_params, model_config, patterned

HYBRID = patterned(
  ("infini", "full", "compressive", "local"),
  8,
  compressive={"compression_rate": 4, "compressed_memory": 6},
)


def state_of(config, fill=0.0):
  state = bind(config, fake_params(config)).state(2)
  return jax.tree.map(lambda x: x + array(fill, x.dtype), state)


def test_only_what_grows_gets_room():
  before = state_of(HYBRID)
  after = reserve(HYBRID, before, 24)
  assert after["full"].k_BCKE.shape[2] >= 24 and before["full"].k_BCKE.shape[2] == 0
  assert after["infini"] is before["infini"] and after["compressive"] is before["compressive"]
  full = model_config(mixer="full", layers=2)
  jax.tree.map(np.testing.assert_array_equal, reserve(full, before["full"], 24), after["full"])


def test_one_part_that_grows_makes_a_state_grow():
  for name in ("infini", "local", "full", "compressive"):
    assert has_one_size(model_config(mixer=name)) == (name != "full")
  assert has_one_size(patterned(("infini", "local"), 4)) and not has_one_size(HYBRID)


def test_the_loss_of_mixers_is_the_mean_over_all_layers():
  state = state_of(HYBRID, 3.0)
  alone = MIXERS["compressive"].auxiliary(state["compressive"])
  assert float(auxiliary(HYBRID, state)) == float(alone) * 2 / 8
  own = HYBRID.by_system["compressive"]
  assert float(auxiliary(own, state["compressive"])) == float(alone) == 3.0
  assert auxiliary(model_config(), state["infini"]) == 0.0


def test_another_memory_comes_without_the_text_of_full_attention():
  mine, other = state_of(HYBRID), state_of(HYBRID, 2.0)
  both = with_memory_of(HYBRID, mine, other)
  assert both["full"] is mine["full"]
  assert both["infini"] is other["infini"] and both["compressive"] is other["compressive"]
  assert with_memory_of(model_config(mixer="full"), mine["full"], other["full"]) is other["full"]
