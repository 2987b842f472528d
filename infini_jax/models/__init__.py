"""The model: parameters, and how they are used."""

from infini_jax.models.transformer import Transformer, abstract_params, bind, init

__all__ = ["Transformer", "abstract_params", "bind", "init"]
