"""The ablations of a config, and the layers that they cut."""

import numpy as np
import pytest

from infini_jax.evaluation.knock_out import INTACT, Variant, knock_outs
from tests.tiny import config


def test_each_name_is_its_variants_in_the_order_asked_for():
  c = config(model={"layers": 3}, evaluation={"knock_out": ("layers", "empty", "reads")})
  layers = [Variant(f"layer {i + 1} cut", cut=(i,)) for i in range(3)]
  assert knock_outs(c) == [
    *layers,
    Variant("empty", empty=True),
    Variant("reads cut", cut=(0, 1, 2)),
  ]
  assert [v.name for v in knock_outs(config())] == ["empty"]
  swapped = knock_outs(config(evaluation={"knock_out": ("swap",)}))
  assert swapped == [Variant("memory of another", swap=True)]
  assert knock_outs(config(evaluation={"knock_out": ()})) == []


def test_a_model_without_memory_has_no_ablations():
  names = ("empty", "reads", "layers")
  assert knock_outs(config(model={"mixer": "local"}, evaluation={"knock_out": names})) == []
  full = config(
    model={"mixer": "full"}, data={"carry_state": False}, evaluation={"knock_out": names}
  )
  assert len(knock_outs(full)) == 4, "what full attention remembers can be held back too"


def test_of_a_pattern_the_layers_with_a_memory_are_cut():
  names = ("empty", "reads", "layers")
  model = {"pattern": ("local", "infini", "full"), "layers": 6}
  c = config(model=model, data={"carry_state": False}, evaluation={"knock_out": names})
  assert knock_outs(c) == [
    Variant("empty", empty=True),
    Variant("reads cut", cut=(1, 4)),
    Variant("layer 2 cut", cut=(1,)),
    Variant("layer 5 cut", cut=(4,)),
  ]
  none = config(model={"pattern": ("local", "full")}, data={"carry_state": False})
  assert knock_outs(none) == []


@pytest.mark.parametrize(
  "variant,cut",
  [(INTACT, []), (Variant("empty", empty=True), []), (Variant("x", cut=(0, 2)), [0, 2])],
)
def test_cut_layers_are_flags_counted_from_0(variant, cut):
  flags = variant.cut_L(4)
  assert flags.dtype == bool and flags.shape == (4,)
  assert np.flatnonzero(flags).tolist() == cut
