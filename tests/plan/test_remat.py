"""`config.run.remat='auto'` is the fastest policy that fits."""

import dataclasses

import pytest

from infini_jax.parallel.chips import CHIPS
from infini_jax.plan.estimate import estimate
from infini_jax.plan.remat import SHARE, settled
from tests.tiny import config

SIZES = {"dcn": 1, "data": 1, "fsdp": 1, "seq": 1, "tensor": 1}


def of(policy):
  return config(run={"remat": policy})


@pytest.mark.parametrize("room,policy", [(1.01, "dots"), (0.99, "full")])
def test_auto_keeps_products_where_they_fit(room, policy):
  chip = CHIPS["v5e"]
  needed = estimate(of("dots"), SIZES, chip).total
  lines = []
  chip = dataclasses.replace(chip, memory=room * needed / SHARE)
  chosen = settled(of("auto"), SIZES, chip, lines.append)
  assert chosen.model.run.remat == policy
  assert len(lines) == 1 and repr(policy) in lines[0], "the choice is not told"


def test_auto_is_full_on_a_cpu_and_another_policy_stays():
  lines = []
  assert settled(of("auto"), SIZES, None, lines.append).model.run.remat == "full"
  assert settled(of("none"), SIZES, CHIPS["v5e"], lines.append).model.run.remat == "none"
  assert not lines
