"""Where the wall time of a run went, over all its processes."""

import time

import pytest

from infini_jax.runs.goodput import KINDS, Goodput, in_words, summary


def test_the_times_of_a_process_add_up():
  goodput = Goodput(lost=5.0)
  time.sleep(0.02)
  goodput.started()
  for kind in ("compile", "save"):
    with goodput.spent(kind):
      time.sleep(0.03)
  goodput.add("input", 0.001)
  time.sleep(0.02)  # steps
  values = goodput.values()
  assert values["start"] >= 0.02 and values["compile"] >= 0.03 and values["save"] >= 0.03
  assert values["steps"] >= 0.015 and values["lost"] == 5.0
  total = values["steps"] + sum(values[kind] for kind in KINDS)
  assert total == pytest.approx(values["seconds"], abs=0.01)


def test_a_later_clock_takes_over_the_earlier_one():
  began = Goodput()
  with began.spent("compile"):
    time.sleep(0.02)
  goodput = Goodput(lost=1.0)
  goodput.include(began)
  values = goodput.values()
  assert values["compile"] >= 0.02 and values["lost"] == 1.0 and values["seconds"] >= 1.02


def test_the_last_line_of_each_session_counts():
  line = lambda session, seconds, steps: {
    "session": session, "seconds": seconds, "steps": steps,
    **dict.fromkeys(KINDS, 0.0), "compile": seconds - steps,
  }  # fmt: skip
  shares = summary([line(1, 10, 5), line(1, 40, 30), line(2, 60, 60)])
  assert shares["steps"] == pytest.approx(0.9) and shares["compile"] == pytest.approx(0.1)
  assert in_words(shares) == "goodput 90%; compile 10%"
  assert summary([]) == {}
