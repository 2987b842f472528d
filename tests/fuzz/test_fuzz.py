"""The lane of random cases works: a few cases of each part, and what it does with a failure."""

import numpy as np
import pytest

from tests.fuzz import __main__ as fuzz

# A case of the operations compiles all forms of a random attention: `make fuzz` has them.
CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in (("ops", 1), ("files", 2))]
CASES += [("configs", 6), ("files", 1), ("requests", 10)]


@pytest.mark.parametrize(("part", "cases"), CASES)
def test_some_cases_of_each_part(part, cases, capsys):
  if part not in fuzz.PARTS:
    pytest.skip("needs the extra serve, and httpx")
  status = fuzz.main([f"--only={part}", f"--cases={cases}", "--seed=1"])  # `make fuzz` varies it
  said = capsys.readouterr()
  assert status == 0, said.err
  assert "first seed 1" in said.out.replace("\n", " ") and ", none failed" in said.out


def test_a_failure_is_told_with_the_command_that_repeats_it(monkeypatch, capsys):
  def case(rng, folder):
    assert rng.integers(2**31) == np.random.default_rng(7).integers(2**31), "another seed"
    raise ValueError("what was found")

  monkeypatch.setitem(fuzz.PARTS, "ops", case)
  assert fuzz.main(["--only=ops", "--cases=1", "--seed=7"]) == 1
  said = capsys.readouterr()
  assert "--only=ops --seed=7 --cases=1" in said.err and "what was found" in said.err
