"""The verdict, and the changes with their estimated bytes."""

import dataclasses

import pytest

from infini_jax.parallel.chips import CHIPS
from infini_jax.parallel.mesh import AXES
from infini_jax.plan.estimate import estimate
from infini_jax.plan.verdict import judge
from tests.tiny import config

SIZES = {**dict.fromkeys(AXES, 1), "data": 4}


def made(memory, **sections):
  chip = dataclasses.replace(CHIPS["v5e"], memory=memory)
  return estimate(config(mesh={"data": 4}, **sections), SIZES, chip)


def test_a_step_that_fits_needs_no_changes():
  verdict = judge(made(2**30))
  assert verdict.fits
  assert verdict.changes == ()


def test_a_change_that_is_enough_alone_is_named_with_its_bytes():
  wide = {"model": {"remat": "none", "layers": 8}}
  whole = made(2**40, **wide)
  tight = made(int(0.8 * whole.total), **wide)
  verdict = judge(tight)
  assert not verdict.fits
  assert verdict.biggest == max(whole.bytes, key=whole.bytes.get)
  named = {change.settings: change for change in verdict.changes}
  remat = named["config.run.remat=full (now none)"]
  again = made(2**40, model={"remat": "full", "layers": 8})
  assert remat.bytes == again.total
  assert all(change.fits and change.bytes <= tight.chip.memory for change in named.values())


def test_several_changes_are_joined_when_none_is_enough():
  whole = made(2**40)
  rest = estimate(config(mesh={"data": 4}), {**SIZES, "data": 1, "fsdp": 4}, whole.chip)
  (change,) = judge(made(int(1.05 * sum(rest.resting.values())))).changes
  assert "fsdp=" in change.settings
  assert change.settings.count("now") > 1


def test_changes_that_do_not_suffice_are_named_as_such():
  (change,) = judge(made(1000)).changes
  assert not change.fits


def test_what_xla_refuses_does_not_fit_whatever_it_names():
  verdict = judge(made(2**30), measured=0.0, refused=True)
  assert not verdict.fits
  assert verdict.needed > verdict.have


def test_a_compiled_peak_decides_and_scales_what_changes_would_need():
  whole = made(2**30)
  assert judge(whole, measured=0.9 * 2**30).fits
  wide = made(2**30, model={"remat": "none"})
  verdict = judge(wide, measured=1.1 * 2**30)
  assert not verdict.fits
  assert verdict.needed == pytest.approx(1.1 * 2**30)
  assert all(c.bytes > 2**29 for c in verdict.changes)
