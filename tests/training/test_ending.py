"""The lines that a training prints when it continues and when it ends."""

import shlex

import numpy as np
import pytest

from infini_jax.arguments import make_parser
from infini_jax.cli import COMMANDS
from infini_jax.data import Store
from infini_jax.training import ending
from infini_jax.training.schedule import make_schedule
from tests.tiny import changed, config, quiet

C = config(
  "corpus", optimizer={"warmup_steps": 2, "learning_rate": 0.01, "gate_learning_rate": 0.2}
)


def rate(steps, at):
  c = changed(C, train=changed(C.train, steps=steps))
  return float(make_schedule(c, c.optimizer.learning_rate)(at))


def told(steps, step, logged, mixer="infini"):
  c = changed(C, train=changed(C.train, steps=steps), model=changed(C.model, mixer=mixer))
  console = quiet()
  ending.tell_rates(c, step, logged, console)
  return console.file.getvalue()


def test_learning_rates_that_jump_are_reported_with_both_values():
  last = {"step": 20, "learning_rate": rate(20, 19)}  # of step 20, at the end of the cosine
  assert last["learning_rate"] == pytest.approx(0.001, rel=0.1)
  old, new = last["learning_rate"], rate(40, 20)
  line = told(40, 20, last)
  assert line.count("\n") == 1 and "config.train.steps=40" in line and "after step 20" in line
  assert f"the learning rate goes from {old:.3g} to {new:.3g}" in line
  assert f"that of the gates from {20 * old:.3g} to {20 * new:.3g}" in line
  assert "gates" not in told(40, 20, last, mixer="local"), "it has none"
  assert not told(20, 12, {"step": 12, "learning_rate": rate(20, 11)}), (
    "the rate goes on as it was planned"
  )
  assert not told(20, 20, last) and not told(10, 20, last), "no step follows"
  assert not told(40, 0, {}) and not told(40, 20, {}), "nothing is known of a rate before"
  earlier = {"step": 10, "learning_rate": rate(20, 9)}
  assert not told(20, 12, earlier) and "goes from" in told(40, 12, earlier), "logged before"
  assert "goes from" in told(16, 12, {"step": 12, "learning_rate": rate(20, 11)}), (
    "fewer steps move it, too"
  )


class Corpus(Store):
  def __init__(self, documents):
    self._tokens = np.ones(documents, int)

  def split(self, name):
    return self

  tokens = property(lambda self: self._tokens)


@pytest.mark.parametrize("documents,command", [(3, "eval"), (0, "generate")])
def test_the_next_command_is_one_that_works(documents, command):
  console = quiet()
  ending.tell_end(C, "a b/$run", Corpus(documents), C.train.steps, 1.25, console)
  line = console.file.getvalue().replace("\n", "")
  assert line.startswith("step 6, saved in a b/$run/checkpoints/6; loss 1.2500; next: infini-jax ")
  args = make_parser(COMMANDS).parse_args(shlex.split(line.partition("next: infini-jax ")[2]))
  assert (args.command, args.workdir) == (command, "a b/$run")


def test_a_stop_before_the_first_step_has_no_checkpoint():
  console = quiet()
  ending.tell_end(C, "run", Corpus(1), 0, None, console)
  assert console.file.getvalue() == "stopped at step 0; the same command continues from there\n"
