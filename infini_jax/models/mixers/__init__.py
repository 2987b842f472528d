"""Memory systems behind one interface; each is one file.

A mixer takes un-rotated queries, keys and values, and carries a state:

  state(lanes)                                 the state before anything was read
  mixer(q, k, v, state, reset_BS=, mask_BT=)   a chunk of whole segments -> (out, state)
  open(state, lanes, dtype)                    the state while a segment is open
  extend(q, k, v, stream, mask_BT)             a few tokens of it -> (out, stream)
  reserve(state, tokens)                       room for so many tokens, where a state grows

Whatever the way the tokens come, the outputs are the same. Resetting every segment is knocking
the memory out.
"""

from infini_jax.models.mixers.full import Full
from infini_jax.models.mixers.infini import Infini
from infini_jax.models.mixers.local import Local

MIXERS = {"infini": Infini, "local": Local, "full": Full}

__all__ = ["MIXERS", "Full", "Infini", "Local"]
