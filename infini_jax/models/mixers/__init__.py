"""Memory systems behind one interface, `base.Mixer`; each is one file."""

from infini_jax.models.mixers.base import Mixer
from infini_jax.models.mixers.compressive import Compressive
from infini_jax.models.mixers.full import Full
from infini_jax.models.mixers.gated_delta import GatedDelta
from infini_jax.models.mixers.infini import Infini
from infini_jax.models.mixers.local import Local
from infini_jax.models.mixers.memorizing import Memorizing
from infini_jax.models.mixers.prefixed import Autocompressor, Rmt
from infini_jax.models.mixers.transformer_xl import TransformerXL

MIXERS: dict[str, type[Mixer]] = {
  "infini": Infini,
  "gated_delta": GatedDelta,
  "local": Local,
  "full": Full,
  "transformer_xl": TransformerXL,
  "compressive": Compressive,
  "memorizing": Memorizing,
  "rmt": Rmt,
  "autocompressor": Autocompressor,
}

__all__ = ["MIXERS", "Mixer"]
