"""How a memory is written and mixed: the paper's choice of two, and refinements."""

from typing import NamedTuple

from infini_jax.rules import GATES, RULES


class Rule(NamedTuple):
  """How the memory is written, equation (8) or (9), and mixed, equation (10).

  The refinements are off by default.

  A padded token writes nothing under any of them, and a segment of padding alone changes nothing.

  Attributes:
    name: a key of `RULES`.
    normalize_keys: sum normalization (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174). A token is
      written, and recalled by delta, under `sigma(k) / sum_e sigma(k)_e`, so that each adds exactly
      1 to `sum(z)`. Queries need none: their scale cancels in the read.
    z_correction: a token adds to `z` only what is new in its key (ARMT, arXiv 2407.04841):
      `gamma * sigma(k)` with `gamma = clip(1 - z.sigma(k) / |sigma(k)|^2, 0, 1)`, which has no
      gradient. `z` is that before the segment, and gamma 1 while it is empty. The update
      of `M` does not change.
    decay: what a segment leaves of the memory before its own update is added, 1 for all:
      `M' = decay * (M - recalled) + written`, `z' = decay * z + keys`. Gated delta with a constant
      gate (arXiv 2412.06464), per segment.
    gate: 'sigmoid', or 'hard_sigmoid', `relu6(beta + 3) / 6`, which reaches 0 and 1.
    readout_norm: each head's read-out is divided by its root mean square; where empty it stays 0.
    scale_first_segment: True scales the local output by `1 - g` even while the memory is empty, as
      the formula says literally; otherwise a head with an empty memory is all local.
  """

  name: str = "linear"
  normalize_keys: bool = False
  z_correction: bool = False
  decay: float = 1.0
  gate: str = "sigmoid"
  readout_norm: bool = False
  scale_first_segment: bool = False

  @property
  def affine(self) -> bool:
    """Whether a segment subtracts from the memory what its keys recall."""
    return RULES[self.name].affine


def as_rule(rule: str | Rule) -> Rule:
  """A rule given by its name alone, or in full.

  Raises:
    ValueError: an unknown name or gate, or a decay outside its bounds.
  """
  rule = Rule(rule) if isinstance(rule, str) else rule
  if rule.name not in RULES:
    raise ValueError(f"rule={rule.name!r}: choose {' or '.join(map(repr, RULES))}")
  if not 0 < rule.decay <= 1:
    raise ValueError(f"decay={rule.decay}: must be above 0, and at most 1 (no decay)")
  if rule.gate not in GATES:
    raise ValueError(f"gate={rule.gate!r}: choose {' or '.join(map(repr, GATES))}")
  return rule
