"""Memory systems behind one interface, `base.Mixer`; each is one file."""

from infini_jax.models.mixers.base import Mixer
from infini_jax.models.mixers.full import Full
from infini_jax.models.mixers.infini import Infini
from infini_jax.models.mixers.local import Local

MIXERS: dict[str, type[Mixer]] = {"infini": Infini, "local": Local, "full": Full}

__all__ = ["MIXERS", "Full", "Infini", "Local", "Mixer"]
