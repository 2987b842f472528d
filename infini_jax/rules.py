"""The rules by which a memory is written, and the gates that mix it in: their names and facts.

The mathematics is in `ops/memory.py`. The config and the mathematics both read the names here.
"""

from typing import NamedTuple


class RuleFacts(NamedTuple):
  """The facts of a rule that other modules read."""

  affine: bool = False  # a segment changes M by an affine map: it subtracts what its keys recall


RULES = {"linear": RuleFacts(), "delta": RuleFacts(affine=True)}
GATES = ("sigmoid", "hard_sigmoid")  # functions of `jax.nn`
