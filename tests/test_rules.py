"""The names of rules and gates are the same in the config and in the mathematics."""

import jax
import pytest

from infini_jax.config.systems import GatedDelta, Infini
from infini_jax.ops import gate_values
from infini_jax.ops.rule import Rule, as_rule
from infini_jax.rules import GATES, RULES


@pytest.mark.parametrize("name", RULES)
def test_the_config_and_the_mathematics_know_the_same_rules(name):
  assert as_rule(name) == Rule(name)
  for system in (Infini, GatedDelta):
    assert system(rule=name).affine == Rule(name).affine == RULES[name].affine


def test_every_gate_is_a_share():
  beta = jax.numpy.linspace(-9, 9, 31)
  for kind in GATES:
    share = gate_values(beta, kind)
    assert (share >= 0).all() and (share <= 1).all() and (jax.numpy.diff(share) >= 0).all()
    assert float(gate_values(jax.numpy.zeros(()), kind)) == 0.5


def test_the_defaults_of_both_are_the_same():
  assert Rule() == Rule(*(getattr(Infini(), "rule" if n == "name" else n) for n in Rule._fields))
