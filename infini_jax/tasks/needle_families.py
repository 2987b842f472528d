"""The statements in a text and the question at its end, for each family of needles.

The families are those of RULER (Hsieh et al., arXiv 2404.06654), and facts as in BABILong
(Kuratov et al., arXiv 2406.10149), after their published definitions. The sentences and the words
are our own. This module makes text only: `needles` converts it to tokens and puts it into filler.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from infini_jax.config import NeedleConfig
from infini_jax.tasks.draw import Draw

NUMBER = " The number of the {key} is {value}."
ANY_NUMBER = " A number of the {key} is {value}."
LET = " Let {name} be {value}."
MOVES = (" {who} went to the {where}.", " {who} walked to the {where}.")
TAKES = (" {who} took the {what}.", " {who} picked up the {what}.")

HIDDEN_NUMBERS = "Some things in this text have a number. Remember them, for you will be asked."
HIDDEN_NAMES = "In this text some names are given a meaning. Remember it, for you will be asked."
HIDDEN_FACTS = "This text tells where people go and what they take. Remember it all."
COMMON_WORDS = "This is a list of words. Remember those that occur most often."
FREQUENT_WORDS = "This is a list of invented words, between dots. Remember how often each occurs."


class Tale(NamedTuple):
  """The content of one text, without its filler."""

  intro: str
  statements: list[tuple[float, str]]  # each with its position in the filler, 0 to 1, in that order
  question: str
  answers: list[str]


def single(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """One number, and no other numbers."""
  return _one_of(draw, task, depth, others=0)


def multikey(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """Numbers of several things; the answer is one of them."""
  return _one_of(draw, task, depth, others=task.needles - 1)


def multivalue(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """Several numbers of one thing; the answers are all of them."""
  key, values = draw.keys(1)[0], draw.numbers(task.needles, task.digits)
  positions = _behind(draw, depth, task.needles)
  statements = [
    (place, ANY_NUMBER.format(key=key, value=value))
    for place, value in zip(positions, values, strict=True)
  ]
  question = f" Which numbers does the {key} have, in the order of the text? They are"
  return Tale(HIDDEN_NUMBERS, statements, question, values)


def multiquery(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """Numbers of several things; the answers are all of them, in another order."""
  keys, values = draw.keys(task.needles), draw.numbers(task.needles, task.digits)
  positions = _behind(draw, depth, task.needles)
  statements = [
    (place, NUMBER.format(key=key, value=value))
    for place, key, value in zip(positions, keys, values, strict=True)
  ]
  order = draw.rng.permutation(task.needles).tolist()
  named = ", the ".join(keys[i] for i in order)
  question = f" What are the numbers of the {named}, in this order? They are"
  return Tale(HIDDEN_NUMBERS, statements, question, [values[i] for i in order])


def variables(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """Chains of names, where each name has the value of the one before; the answers are one chain."""
  length = task.hops + 1
  values, names = draw.numbers(task.needles, task.digits), draw.names(task.needles * length)
  statements = []
  for chain, value in enumerate(values):
    its = names[chain * length :][:length]
    positions = _anywhere(draw, length) if chain else _behind(draw, depth, length)
    for place, name, means in zip(positions, its, [value, *its[:-1]], strict=True):
      statements.append((place, LET.format(name=name, value=means)))
  question = f" Which names stand for {values[0]}, in the order of the text? They are"
  return Tale(HIDDEN_NAMES, _sorted(statements), question, names[:length])


def facts(draw: Draw, task: NeedleConfig, depth: float) -> Tale:
  """People go to places and take things; the answer is where a person or a thing is at the end."""
  with_things = task.facts == 2
  where, things = draw.places(2 * task.needles), draw.things(task.needles)
  people = draw.people(task.needles)
  said = lambda forms: str(draw.rng.choice(forms))
  statements: list[tuple[float, str]] = []
  for i, (who, what) in enumerate(zip(people, things, strict=True)):
    told = [said(MOVES).format(who=who, where=place) for place in where[2 * i :][:2]]
    if with_things:
      told.insert(1, said(TAKES).format(who=who, what=what))
    if i:
      positions = _anywhere(draw, len(told))
    else:  # an earlier fact, and the facts that the answer depends on
      positions = [depth * draw.rng.random(), *_behind(draw, depth, task.facts)]
    statements += zip(positions, told, strict=True)
  asked = f"the {things[0]}" if with_things else people[0]
  question = f" Where is {asked} now? {asked[0].upper()}{asked[1:]} is in the"
  return Tale(HIDDEN_FACTS, _sorted(statements), question, [where[1]])


def ask_common(answers: list[str]) -> str:
  """The question for the commonest words of a list."""
  return f" Which {len(answers)} words occur most often, in the order of the alphabet? They are"


def ask_frequent(answers: list[str]) -> str:
  """The question for the most frequent invented words."""
  return f" Which {len(answers)} words occur most often, the most frequent first? They are"


IN_FILLER: dict[str, Callable[[Draw, NeedleConfig, float], Tale]] = {
  f.__name__: f for f in (single, multikey, multivalue, multiquery, variables, facts)
}


def _one_of(draw: Draw, task: NeedleConfig, depth: float, others: int) -> Tale:
  """The answer is the first number, at `depth`; the others are at random positions."""
  keys, values = draw.keys(others + 1), draw.numbers(others + 1, task.digits)
  positions = [depth, *_anywhere(draw, others)]
  statements = [
    (place, NUMBER.format(key=key, value=value))
    for place, key, value in zip(positions, keys, values, strict=True)
  ]
  question = f" What is the number of the {keys[0]}? The number of the {keys[0]} is"
  return Tale(HIDDEN_NUMBERS, _sorted(statements), question, values[:1])


def _anywhere(draw: Draw, count: int) -> list[float]:
  return np.sort(draw.rng.random(count)).tolist()


def _behind(draw: Draw, depth: float, count: int) -> list[float]:
  """Positions: the first is `depth`, the others are random and after it."""
  return [depth, *np.sort(draw.rng.uniform(depth, 1, count - 1)).tolist()]


def _sorted(statements: list[tuple[float, str]]) -> list[tuple[float, str]]:
  return sorted(statements, key=lambda statement: statement[0])
