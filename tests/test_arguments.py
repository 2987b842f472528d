"""What the commands take: every command has a function and a help, and no JAX is needed for it."""

import subprocess
import sys

import pytest

from infini_jax.arguments import make_parser
from infini_jax.cli import COMMANDS


def names():
  parser = make_parser(COMMANDS)
  (commands,) = [a for a in parser._actions if a.dest == "command"]
  return commands.choices


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_what_it_does_and_what_each_argument_is(name):
  made = names()[name]
  assert made.description and made.get_default("run") is COMMANDS[name]
  for action in made._actions:
    assert action.help, f"{name}: {action.option_strings or action.dest} has no help"


def test_every_command_has_a_function():
  assert names().keys() == COMMANDS.keys()


def test_arguments_need_no_jax():
  code = "import sys, infini_jax.arguments; assert 'jax' not in sys.modules, 'help must be quick'"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
