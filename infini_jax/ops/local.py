"""Attention inside segments, with rotary positions that restart in each of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infini_jax.ops import kernels, memory_kernels
from infini_jax.ops.attention import Scoring, segment_attention
from infini_jax.ops.rotary import Frequencies, Rope, cos_sin, rotation


class LocalAttention(NamedTuple):
  """How it is computed.

  Attributes:
    rope: as of `ops.rotary.rotate`; None: no positions.
    kernel: of `ops.attention.segment_attention`.
    scoring: as there.
  """

  rope: Rope | None
  kernel: str
  scoring: Scoring

  def __call__(
    self,
    q_BSNHE: Float[Array, "B S N H E"],
    k_BSNKE: Float[Array, "B S N K E"],
    v_BSNKU: Float[Array, "B S N K U"],
    mask_BSN: Bool[Array, "B S N"] | None,
  ) -> Float[Array, "B S N H U"]:
    """Of the arrays of one device, un-rotated; arguments as of `segment_attention`."""
    if not self.is_splash(q_BSNHE, v_BSNKU):
      rotate = jax.vmap(rotation(None, self.rope), 1, 1)
      qkv = rotate(q_BSNHE), rotate(k_BSNKE), v_BSNKU
      return segment_attention(*qkv, mask_BSN, kernel=self.kernel, scoring=self.scoring)
    first = lambda x: jnp.transpose(x, (0, 3, 1, 2, 4))
    q, k = self.rotated(first(q_BSNHE), first(k_BSNKE), memory_kernels.rotate_only)
    out_BKSGNU = self.attend(q, k, first(v_BSNKU))
    return jnp.transpose(out_BKSGNU, (0, 2, 4, 1, 3, 5)).reshape(*q_BSNHE.shape[:4], -1)

  def is_splash(self, q: Array, v: Array) -> bool:
    """Whether `rotated` and `attend` compute it, of queries and values (B,S,N,heads,size)."""
    on, (N, _, E) = kernels.platform(), q.shape[2:]
    args = self.kernel, on, N, E, v.shape[-1], q.dtype, self.scoring.softcap
    return kernels.choose(*args) == "splash"

  def computed(self, rope: Frequencies | None) -> "LocalAttention":
    """With frequencies that were computed, if there are any."""
    return self if rope is None else self._replace(rope=rope)

  def rotated(
    self,
    q_BHSNE: Float[Array, "B H S N E"],
    k_BKSNE: Float[Array, "B K S N E"],
    rotate: Callable = memory_kernels.rotate,
  ) -> tuple[Any, Any]:
    """Queries and keys for `attend`, each as `rotate` returns it."""
    K, N, E = k_BKSNE.shape[1], *k_BKSNE.shape[-2:]
    cos, sin = jnp.ones((N, E)), jnp.zeros((N, E))
    if self.rope is not None:
      cos, sin = (jnp.tile(x, 2) for x in cos_sin(jnp.arange(N, dtype=jnp.int32), E, self.rope))
    rotate = partial(rotate, order="BHSNE", on=kernels.platform())
    scale, G = self.scoring.scale_of(E), q_BHSNE.shape[1] // K
    queries = rotate(q_BHSNE, cos * scale, sin * scale, to="BKSGNE", G=G)
    return queries, rotate(k_BKSNE, cos, sin, to="BHSNE")

  def attend(
    self,
    q_BKSGNE: Float[Array, "B K S G N E"],
    k_BKSNE: Float[Array, "B K S N E"],
    v_BKSNU: Float[Array, "B K S N U"],
  ) -> Float[Array, "B K S G N U"]:
    """By splash, of queries and keys that `rotated` made."""
    B, K, S, G, N, E = q_BKSGNE.shape
    out = kernels.splash_heads(
      q_BKSGNE.reshape(B, -1, N, E),
      k_BKSNE.reshape(B, -1, N, E),
      v_BKSNU.reshape(B, K * S, N, -1),
      self.scoring.softcap,
    )
    return out.reshape(B, K, S, G, N, -1)
