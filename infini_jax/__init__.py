"""Infini-attention in JAX and Flax NNX: Transformers that read without end in constant memory."""

__version__ = "0.1.0"
